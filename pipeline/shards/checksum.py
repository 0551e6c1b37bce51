"""The checksums of a shard: one per modality of a row, one over the rest of the row, one over the file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import xxhash

_HEAD = struct.Struct("<16sdII")
_PRESENT = struct.Struct("<cQ")


def tokens_checksum(content: memoryview[Any]) -> int:
    """xxh3_64 of the bytes of one row's modality, contiguous."""
    return int(xxhash.xxh3_64_intdigest(content))


def row_checksum(
    example_id: bytes, source: str, start_seconds: float, labels: Sequence[int], hashes: Sequence[int | None]
) -> int:
    """xxh3_64 over all of a row that is not tokens, and over which modalities it has.

    It makes a flipped bit in an id, a label or a validity bitmap as visible as one in a pixel.
    """
    text = source.encode()
    parts = [_HEAD.pack(example_id, start_seconds, len(text), len(labels))]
    if labels:
        parts.append(struct.pack(f"<{len(labels)}i", *labels))
    parts.append(text)
    parts += [b"\0" if value is None else _PRESENT.pack(b"\1", value) for value in hashes]
    return int(xxhash.xxh3_64_intdigest(b"".join(parts)))


class HashingSink:
    """A binary file that takes the xxh3_128 and the size of everything written through it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._hash = xxhash.xxh3_128()
        self.size_bytes = 0

    def write(self, content: Any) -> int:
        """Write and hash one buffer."""
        view = memoryview(content).cast("B")
        self._hash.update(view)
        self.size_bytes += len(view)
        return int(self._stream.write(view))

    def flush(self) -> None:
        """Leave it to the file: its owner syncs it."""

    @property
    def closed(self) -> bool:
        """Whether the file below is closed."""
        return bool(self._stream.closed)

    def close(self) -> None:
        """Leave the file open: its owner still has to sync it."""

    def hexdigest(self) -> str:
        """xxh3_128 so far."""
        return str(self._hash.hexdigest())
