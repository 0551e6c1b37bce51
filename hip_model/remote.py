"""Folders named by URI, brought here for reading."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hip_model.errors import InputError


@contextmanager
def local_folder(location: str | Path, files: Sequence[str]) -> Iterator[Path]:
    """The folder itself, or a temporary copy of ``files`` for a URI (``file://``, ``s3://``, ``gs://``, any fsspec).

    Raises:
        InputError: a URI that cannot be read, or that lacks one of the files. Credentials in it are not repeated.
    """
    if "://" not in str(location):
        yield Path(location).expanduser()
        return
    uri = str(location).rstrip("/")
    shown = re.sub(r"//[^/@]*@", "//***@", uri)
    with tempfile.TemporaryDirectory(prefix="hip-model-") as temporary:
        for name in files:
            try:
                _download(f"{uri}/{name}", Path(temporary, name))
            except FileNotFoundError as error:
                raise InputError(f"no model at {shown}: {name} is missing") from error
            except (ImportError, ValueError, OSError) as error:
                raise InputError(f"cannot read {shown}/{name}: {type(error).__name__}") from error
        yield Path(temporary)


def _download(uri: str, target: Path) -> None:
    from pyarrow import ArrowInvalid, fs

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except ArrowInvalid:
        # A scheme Arrow does not know.
        filesystem, path = _fsspec_filesystem(uri)
    with filesystem.open_input_stream(path) as source, target.open("wb") as copy:
        while chunk := source.read(1 << 24):
            copy.write(chunk)


def _fsspec_filesystem(uri: str) -> tuple[Any, str]:
    import fsspec
    from pyarrow import fs

    filesystem, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
