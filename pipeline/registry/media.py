"""One item of a request as media: a path, a URI, bytes or base64 text, decoded with the model's own recipe."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.preprocess.box import decode_file_boxed
from pipeline.preprocess.decode import DecodedExample
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.storage import is_local, local_path, read_bytes, redact

MEDIA_ROOT = "HIP_MEDIA_ROOT"
# Either is set by MLflow's scoring server, whichever way it was started.
_SERVING = ("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "__pyfunc_model_path__")
# A request must not hold the server for long: a minute of work, an hour of media.
SERVING_LIMITS = LimitsOptions(seconds_per_file=60.0, max_duration_seconds=3600.0)


def decode_item(item: object, recipe: TokenRecipe, limits: LimitsOptions = SERVING_LIMITS) -> Iterator[DecodedExample]:
    """Decode one item of a request, clip by clip.

    Raises:
        MediaError: it is not media that the recipe can use, or a path that may not be read.
    """
    with _as_file(item) as path:
        yield from decode_file_boxed(str(path), recipe, limits)


@contextmanager
def _as_file(item: object) -> Iterator[Path]:
    path = _allowed_path(item) if isinstance(item, str) else None
    if path is not None:
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="hip_media_") as file:
        file.write(_content(item))
        file.flush()
        yield Path(file.name)


def _content(item: object) -> bytes:
    """The bytes that ``item`` holds or points at."""
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if not isinstance(item, str):
        raise MediaError("not_media", f"an item is {type(item).__name__}; give a path, a URI, bytes or base64 text")
    if item.startswith("data:"):
        item = item.partition(",")[2]
    elif not is_local(item):
        _refuse_paths_when_serving()
        try:
            return read_bytes(item)
        except UserError as error:
            raise MediaError("missing_file", str(error)) from error
    try:
        return base64.b64decode(item, validate=True)
    except binascii.Error as error:
        shown = redact(item[:80])
        raise MediaError("missing_file", f"{shown!r} is neither an existing file nor base64 text") from error


def _allowed_path(text: str) -> Path | None:
    """The local file that ``text`` names, if it is one and may be read."""
    if text.startswith("data:") or len(text) > 4096 or not is_local(text):
        return None
    root = os.environ.get(MEDIA_ROOT)
    if root is None and _serving():
        return None  # not even its existence is told
    path = local_path(text).resolve()
    if root is not None and not path.is_relative_to(Path(root).resolve()):
        raise MediaError("unreadable", f"paths outside {MEDIA_ROOT} may not be read; send the bytes as base64")
    return path if path.is_file() else None


def _serving() -> bool:
    return any(os.environ.get(name) for name in _SERVING)


def _refuse_paths_when_serving() -> None:
    if _serving():
        raise MediaError("unreadable", "this server does not fetch URIs; send the bytes as base64")
