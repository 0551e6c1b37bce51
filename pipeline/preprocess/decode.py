"""One file in, examples out: the single way from media to tokens, for datasets and for serving alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hip_model.ordering import flatten, kd_order, token_order
from pipeline.preprocess.align import Segment, cut_clips
from pipeline.preprocess.image import read_image
from pipeline.preprocess.kinds import AUDIO_VIDEO, IMAGE, kind_of_content, media_kind
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.points import read_clouds
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.shards.schema import ModalitySpec

Arrays = dict[str, np.ndarray | None]


@dataclass(frozen=True)
class DecodedExample:
    """One example of a file: raw integers ``[tokens, channels]`` per modality, None where the file lacks it."""

    arrays: Arrays
    start_seconds: float
    index: int
    """Which clip or object of the file."""


def decode_file(
    path: str,
    recipe: TokenRecipe,
    limits: LimitsOptions | None = None,
    segment: Segment | None = None,
    notes: dict[str, Any] | None = None,
) -> Iterator[DecodedExample]:
    """Decode a local file into the examples that ``recipe`` asks for, one at a time.

    ``segment`` restricts an audio or video file to (first, last) seconds; ``notes`` is filled with what was chosen
    (streams, rotation). Untrusted files belong into :func:`pipeline.preprocess.box.decode_file_boxed`.

    Raises:
        MediaError: the file cannot be used; ``reason`` says why.
    """
    limits = limits or LimitsOptions()
    notes = {} if notes is None else notes
    specs = {spec.name: spec for spec in recipe.specs()}
    kind = _checked_kind(path, recipe)
    count = 0
    for index, start, arrays in _decode_kind(kind, path, recipe, limits, segment, notes):
        count += 1
        tokens = {name: _to_tokens(arrays.get(name), spec) for name, spec in specs.items()}
        yield DecodedExample(tokens, start, index)
    if not count:
        raise MediaError("too_short", f"no clip of {recipe.clip_seconds} s, nor any object, is in it")


def _checked_kind(path: str, recipe: TokenRecipe) -> str:
    try:
        with Path(path).open("rb") as stream:
            first_bytes = stream.read(16)
    except OSError as error:
        raise MediaError("unreadable", error.strerror or str(error)) from error
    if not first_bytes:
        raise MediaError("empty_file", "0 bytes")
    kind = media_kind(path, first_bytes)
    if kind is None:
        raise MediaError("other_file", f"unknown suffix {Path(path).suffix!r} and first bytes {first_bytes[:8]!r}")
    wanted = {AUDIO_VIDEO: recipe.video or recipe.audio, IMAGE: recipe.image}.get(kind, recipe.points)
    if wanted is None:
        raise MediaError("not_in_recipe", f"the file is {kind}, the recipe has {[s.name for s in recipe.specs()]}")
    return kind


def _decode_kind(
    kind: str,
    path: str,
    recipe: TokenRecipe,
    limits: LimitsOptions,
    segment: Segment | None,
    notes: dict[str, Any],
) -> Iterator[tuple[int, float, Arrays]]:
    """``(index, start second, arrays before flattening)``."""
    if kind == AUDIO_VIDEO:
        try:
            for clip in cut_clips(path, recipe, limits, segment, notes):
                yield clip.index, clip.start_seconds, {"video": clip.video, "audio": clip.audio}
        except MediaError as error:
            raise _not_media_if_unproven(error, path) from error
    elif kind == IMAGE:
        assert recipe.image is not None
        yield 0, 0.0, {"image": read_image(path, recipe.image, limits, notes)}
    else:
        assert recipe.points is not None
        for index, cloud in read_clouds(path, recipe.points, limits, notes):
            yield index, 0.0, {"points": cloud}


def _not_media_if_unproven(error: MediaError, path: str) -> MediaError:
    """A file that is media by name only and cannot even be opened is something else."""
    with Path(path).open("rb") as stream:
        proven = kind_of_content(stream.read(16)) is not None
    if error.reason == "corrupt" and error.detail.startswith("opening") and not proven:
        return MediaError("not_media", error.detail)
    return error


def _to_tokens(array: np.ndarray | None, spec: ModalitySpec) -> np.ndarray | None:
    """``[*shape, C]`` to ``[T, C]`` in the recipe's order; raster is free."""
    if array is None:
        return None
    if spec.token_order == "raster":
        return array.reshape(spec.num_tokens, spec.num_channels)
    order = kd_order(array) if spec.token_order == "kd" else token_order(spec.token_order, spec.shape)
    return flatten(array, order)
