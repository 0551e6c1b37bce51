"""One rule for every picture's size: native RGB in, the recipe's height and width out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def fit_picture(picture: Picture, height: int, width: int, fit: str) -> Picture:
    """``[h, w, 3]`` to ``[height, width, 3]`` with OpenCV's area filter; a picture of the right size is not touched.

    ``crop`` cuts the largest centred part of the target's aspect ratio and resizes it, ``stretch`` resizes each axis on
    its own, ``pad`` keeps the whole picture, centred on black.
    """
    if picture.shape[:2] == (height, width):
        return np.ascontiguousarray(picture)
    if fit == "crop":
        picture = _centre_crop(picture, height, width)
    elif fit == "pad":
        return _pad(picture, height, width)
    return _resize(picture, height, width)


def _centre_crop(picture: Picture, height: int, width: int) -> Picture:
    rows, columns = picture.shape[:2]
    scale = min(rows / height, columns / width)
    kept_rows = min(rows, max(1, round(height * scale)))
    kept_columns = min(columns, max(1, round(width * scale)))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return picture[top : top + kept_rows, left : left + kept_columns]


def _pad(picture: Picture, height: int, width: int) -> Picture:
    rows, columns = picture.shape[:2]
    scale = min(height / rows, width / columns)
    inner_rows = min(height, max(1, round(rows * scale)))
    inner_columns = min(width, max(1, round(columns * scale)))
    top, left = (height - inner_rows) // 2, (width - inner_columns) // 2
    canvas: Any = np.zeros((height, width, 3), dtype=np.uint8)
    canvas[top : top + inner_rows, left : left + inner_columns] = _resize(picture, inner_rows, inner_columns)
    return canvas


def _resize(picture: Picture, height: int, width: int) -> Picture:
    if picture.shape[:2] == (height, width):
        return np.ascontiguousarray(picture)
    import cv2

    cv2.setNumThreads(1)  # one file is one core's work; threads would only fight
    resized: Picture = cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=cv2.INTER_AREA)
    return resized
