"""What kind of media a file holds, by its first bytes and, failing that, its name."""

from __future__ import annotations

from pathlib import PurePath

AUDIO_VIDEO = "audio_video"
IMAGE = "image"
POINTS = "points"

_SUFFIXES = {
    AUDIO_VIDEO: "mp4 m4v mov mkv webm avi mpg mpeg ts flv wmv ogv 3gp wav flac mp3 ogg oga opus m4a aac wma aiff",
    IMAGE: "jpg jpeg png webp",
    POINTS: "off ply npy npz",
}
_KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}

_SIGNATURES = (
    (0, b"\xff\xd8\xff", IMAGE),
    (0, b"\x89PNG\r\n\x1a\n", IMAGE),
    (8, b"WEBP", IMAGE),
    (8, b"WAVE", AUDIO_VIDEO),
    (8, b"AVI ", AUDIO_VIDEO),
    (4, b"ftyp", AUDIO_VIDEO),
    (4, b"moov", AUDIO_VIDEO),
    (0, b"\x1aE\xdf\xa3", AUDIO_VIDEO),
    (0, b"OggS", AUDIO_VIDEO),
    (0, b"fLaC", AUDIO_VIDEO),
    (0, b"ID3", AUDIO_VIDEO),
    (0, b"\x93NUMPY", POINTS),
    (0, b"OFF", POINTS),
    (0, b"ply\n", POINTS),
    (0, b"ply\r\n", POINTS),
)


def kind_of_name(name: str) -> str | None:
    """The kind that a file's suffix promises (``.gz`` is looked through), or None."""
    suffixes = [suffix.lstrip(".").lower() for suffix in PurePath(name).suffixes[-2:]]
    if suffixes and suffixes[-1] == "gz":
        suffixes.pop()
    return _KIND_OF_SUFFIX.get(suffixes[-1]) if suffixes else None


def kind_of_content(first_bytes: bytes) -> str | None:
    """The kind that the first 16 bytes prove, or None."""
    for offset, signature, kind in _SIGNATURES:
        if first_bytes[offset : offset + len(signature)] == signature:
            return kind
    return None


def media_kind(name: str, first_bytes: bytes) -> str | None:
    """Content first, then name: a PNG called ``.jpg`` is still a picture."""
    return kind_of_content(first_bytes) or kind_of_name(name)
