"""Pictures: size checked from the header before a pixel is decoded, upright, RGB, the recipe's size."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import ImageRecipe
from pipeline.preprocess.resize import Picture, fit_picture

_FORMATS = ("JPEG", "PNG", "WEBP")


def read_image(path: str, recipe: ImageRecipe, limits: LimitsOptions, notes: dict[str, Any]) -> Picture:
    """One JPEG, PNG or WebP picture as ``[height, width, 3]`` uint8 (the first of an animation; transparency dropped).

    Raises:
        MediaError: too_large, not_media, corrupt or truncated.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked below, from the header
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
                notes["image"] = f"{image.format} {width}x{height}"
                if width * height > limits.max_pixels:
                    raise MediaError("too_large", f"{width}x{height} pixels, limit {limits.max_pixels:,}")
                upright = ImageOps.exif_transpose(image)
                native = np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError as error:
        raise MediaError("not_media", "neither JPEG, PNG nor WebP") from error
    except MemoryError as error:
        raise MediaError("memory_limit", "out of memory while decoding the picture") from error
    except (OSError, ValueError, SyntaxError, IndexError, TypeError) as error:
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise MediaError(reason, str(error)) from error
    return fit_picture(native, recipe.height, recipe.width, recipe.fit)
