"""What a file is, before it is decoded: the hash of its content and the seconds that it claims."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from pipeline.preprocess.box import probe_seconds_boxed
from pipeline.preprocess.fetch import local_copy
from pipeline.preprocess.kinds import AUDIO_VIDEO, media_kind
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.listing import Source
from pipeline.storage import redact

_CHUNK_BYTES = 4_000_000


@dataclass(frozen=True)
class Identity:
    """``content_hash`` (xxh3_128, hexadecimal) names the file wherever it lies; ``reason`` says why it is unusable."""

    content_hash: str
    seconds: float = 0.0
    reason: str = ""
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def identify(source: Source, limits: LimitsOptions) -> Identity:
    """Hash one file and, for audio and video, read the duration that its container claims (0 when unknown)."""
    if not source.location:
        return _unusable(source, "unreadable", "its name is not UTF-8; rename it")
    if source.bytes < 0:
        return _unusable(source, "missing_file", "nothing is there: a wrong path in the table, or a broken link")
    if source.bytes == 0:
        return _unusable(source, "empty_file", "0 bytes")
    try:
        with local_copy(source.location) as path:  # a remote file is fetched once for both
            content_hash, first_bytes = _hash_content(path)
            probed = media_kind(source.name, first_bytes) == AUDIO_VIDEO
            return Identity(content_hash, _claimed_seconds(path, limits) if probed else 0.0)
    except OSError as error:
        return _unusable(source, "unreadable", redact(error.strerror or str(error)))


def _hash_content(path: str) -> tuple[str, bytes]:
    digest = xxhash.xxh3_128()
    first_bytes = b""
    with Path(path).open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            first_bytes = first_bytes or chunk[:16]
            digest.update(chunk)
    return digest.hexdigest(), first_bytes


def _claimed_seconds(path: str, limits: LimitsOptions) -> float:
    try:
        return probe_seconds_boxed(path, limits)
    except MediaError:
        return 0.0  # decoding will meet the same fault and record it


def _unusable(source: Source, reason: str, detail: str) -> Identity:
    """Without content the name stands for the file, so that ten empty files are not one."""
    return Identity(xxhash.xxh3_128_hexdigest(f"{reason}\x1f{source.name}".encode()), 0.0, reason, detail)
