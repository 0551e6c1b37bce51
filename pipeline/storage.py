"""Small files anywhere: local paths and URIs (``s3://``, ``gs://``, ``file://``) behind one set of functions."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from pipeline.errors import InfrastructureError, UserError
from pipeline.scratch import ScratchFolder

# A secret may hold a slash that nobody escaped; what looks like a port and a path is none.
_SECRET_IN_URI = re.compile(
    r"(?<=//)(?:[^/\s]+@|[^/\s:@]+:(?!\d{1,5}/)[^\s@]*@)"
    r"|(?<=[?&])(?:sig|[\w.-]*(?:secret|passw|token|signature|credential|access_?key)[\w.-]*)=[^&\s]+",
    re.IGNORECASE,
)
_URI = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def redact(text: str) -> str:
    """Remove credentials from any URI inside ``text``, so that it may be logged."""
    return _SECRET_IN_URI.sub("", text)


def is_local(location: str) -> bool:
    """Whether ``location`` is on this machine's file system."""
    return not _URI.match(location) or location.startswith("file://")


def local_path(location: str) -> Path:
    """The absolute path of a local ``location``.

    Raises:
        UserError: ``location`` is remote.
    """
    if not is_local(location):
        raise UserError(f"{redact(location)} is remote; this needs a local folder")
    return Path(location.removeprefix("file://")).expanduser().absolute()


def absolute(location: str) -> str:
    """A place that every process finds, whatever folder it runs in: a local one in full, a URI as it is."""
    return str(local_path(location)) if is_local(location) else location


def join(location: str, *parts: str) -> str:
    """``location`` with ``parts`` below it (before a URI's query string)."""
    base, mark, query = (location, "", "") if is_local(location) else location.partition("?")
    return "/".join([base.rstrip("/"), *parts]) + mark + query


def name_of(location: str) -> str:
    """The last name of ``location``'s path (a URI's query string is none of it)."""
    return path_of(location).rpartition("/")[2]


def parent_of(location: str) -> str:
    """The folder that holds ``location``, with the same query string if it is a URI."""
    path = path_of(location)
    query = "" if is_local(location) else location[location.find("?") :] if "?" in location else ""
    return (path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")) + query


def path_of(location: str) -> str:
    """``location`` without a URI's query string and without slashes at its end."""
    return (location if is_local(location) else location.partition("?")[0]).rstrip("/")


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """The file system that holds ``location`` and the path inside it.

    Raises:
        UserError: a scheme that no installed file system handles.
    """
    if is_local(location):
        return fs.LocalFileSystem(), str(local_path(location))
    try:
        return fs.FileSystem.from_uri(location)
    except (ValueError, OSError) as first_error:
        try:
            import fsspec

            system, path = fsspec.core.url_to_fs(location)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"cannot open {redact(location)}: {redact(str(first_error))}; use a path, s3:// or gs://"
            ) from error
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def exists(location: str) -> bool:
    """Whether a file or folder is at ``location``."""
    system, path = resolve(location)
    return bool(system.get_file_info(path).type != fs.FileType.NotFound)


def list_files(location: str, recursive: bool = False) -> list[fs.FileInfo]:
    """Files below the folder ``location``, sorted by path; empty when it is missing."""
    system, path = resolve(location)
    found = system.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True))
    return sorted((info for info in found if info.is_file), key=lambda info: str(info.path))


def read_bytes(location: str) -> bytes:
    """The whole content of one file.

    Raises:
        UserError: nothing is there.
    """
    system, path = resolve(location)
    try:
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError as error:
        raise UserError(f"{redact(location)} does not exist") from error


def download(location: str, place: Path) -> None:
    """Copy one remote file to ``place`` on this machine.

    Raises:
        OSError: it cannot be read, or the disk is full.
    """
    system, path = resolve(location)
    place.parent.mkdir(parents=True, exist_ok=True)
    fs.copy_files(path, str(place), source_filesystem=system, destination_filesystem=fs.LocalFileSystem())


@contextmanager
def folder_here(location: str) -> Iterator[Path]:
    """A local folder itself, or a temporary copy of a remote one's own files, below its path's last three names."""
    if is_local(location):
        yield local_path(location)
        return
    with ScratchFolder("copy") as folder:
        here = folder.joinpath(*resolve(location)[1].split("/")[-3:])
        for info in list_files(location):
            download(join(location, info.base_name), here / info.base_name)
        yield here


def write_atomic(location: str, content: bytes) -> None:
    """Write ``content`` so that a reader sees the old file or the new one, never a part.

    Raises:
        UserError: the folder is read-only.
        InfrastructureError: the disk is full.
    """
    if not is_local(location):
        system, path = resolve(location)
        with system.open_output_stream(path) as stream:  # object stores publish on close
            stream.write(content)
        return
    path_here = local_path(location)
    temporary = path_here.with_name(f".{path_here.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path_here.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path_here)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise explain_os_error(error, str(path_here)) from error


def explain_os_error(error: OSError, location: str) -> UserError | InfrastructureError:
    """The error to show for a failed write at ``location``: full disk, read-only, or what the system said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InfrastructureError(
            f"no space left while writing {location}; free some space and run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {location}: {error.strerror}; choose a folder that you may write to")
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG):
        return UserError(f"cannot write {location}: {error.strerror}; choose a folder, where no file is in the way")
    return InfrastructureError(f"writing {location} failed: {error.strerror or error}")
