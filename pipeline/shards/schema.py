"""What a token shard holds: the modalities, one row, and the Arrow schema that both are written with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from hip_model.modality import Modality
from pipeline.errors import DataError, UserError, nearest

FORMAT_VERSION = 1
"""Raised whenever an older reader could misread newer files."""

TOKEN_TYPES = ("uint8", "int8", "int16", "float32")
BATCH_BYTES = 24_000_000
"""Upper size of one record batch: one ranged read of an object store."""
MAX_BATCH_ROWS = 1024

METADATA_KEY = b"hip_shard"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("example_id", "source", "start_seconds", "labels", "row_xxh3")


@dataclass(frozen=True)
class ModalitySpec:
    """One modality as stored: tokens ``[num_tokens, num_channels]`` of one integer or float type.

    ``shape`` gives the axes before flattening (``(frames, height, width)``, ``(height, width)``, ``(samples,)`` or
    ``(points,)``); ``sampling`` says how the signal was taken (size, frames, rate), as JSON values.

    Raises:
        UserError: a bad name, an empty axis, or a type that shards do not store.
    """

    name: str
    shape: tuple[int, ...]
    num_channels: int
    dtype: str
    token_order: str = "raster"
    sampling: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise UserError(
                f"modality name {self.name!r} is not usable: lower-case letters, digits and _, not {_RESERVED}"
            )
        if not self.shape or min(self.shape) < 1 or self.num_channels < 1:
            raise UserError(
                f"modality {self.name!r} needs at least one token and one channel, "
                f"got shape={self.shape}, num_channels={self.num_channels}"
            )
        if self.dtype not in TOKEN_TYPES:
            raise UserError(f"modality {self.name!r} has type {self.dtype!r}; {nearest(self.dtype, TOKEN_TYPES)}")

    @property
    def num_tokens(self) -> int:
        """Tokens of one example."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one example."""
        return self.num_tokens * self.num_channels * np.dtype(self.dtype).itemsize

    def to_modality(self) -> Modality:
        """The same modality as a model sees it."""
        return Modality(self.name, self.num_tokens, self.num_channels, self.shape, self.token_order)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; ``from_dict`` reads it back."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "num_tokens": self.num_tokens,
            "num_channels": self.num_channels,
            "dtype": self.dtype,
            "token_order": self.token_order,
            "sampling": self.sampling,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModalitySpec:
        """Read what ``to_dict`` gave.

        Raises:
            DataError: a missing key, or a token count that contradicts the shape.
        """
        try:
            spec = cls(
                name=values["name"],
                shape=tuple(values["shape"]),
                num_channels=values["num_channels"],
                dtype=values["dtype"],
                token_order=values.get("token_order", "raster"),
                sampling=dict(values.get("sampling", {})),
            )
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise DataError(f"a modality is described wrongly: {values!r} ({error!r})") from error
        if values.get("num_tokens", spec.num_tokens) != spec.num_tokens:
            raise DataError(
                f"modality {spec.name!r}: {values['num_tokens']} tokens, but shape {spec.shape} has another count"
            )
        return spec


@dataclass(frozen=True)
class ExampleRow:
    """One example on its way into a shard.

    ``arrays`` maps a modality to ``[num_tokens, num_channels]`` of the stored type; None or an absent key means that
    the source lacks it. ``example_id`` is 16 bytes, stable across runs; ``start_seconds`` is where a clip begins in
    its source.
    """

    example_id: bytes
    source: str
    start_seconds: float
    labels: tuple[int, ...]
    arrays: dict[str, np.ndarray | None]


def canonical_json(value: Any) -> str:
    """One text for one value, whatever the order of its keys; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def rows_per_batch(specs: Sequence[ModalitySpec]) -> int:
    """Rows of one record batch: the power of two that fits ``BATCH_BYTES`` (16 audio-video rows, 128 images)."""
    rows = BATCH_BYTES // sum(spec.row_bytes for spec in specs)
    return min(MAX_BATCH_ROWS, 1 << max(0, rows.bit_length() - 1))


def hash_column(name: str) -> str:
    """Name of the column with the xxh3_64 of each row of modality ``name``."""
    return f"{name}_xxh3"


def tensor_type(spec: ModalitySpec) -> pa.DataType:
    """Arrow's canonical fixed-shape tensor type of one modality."""
    return pa.fixed_shape_tensor(pa.from_numpy_dtype(np.dtype(spec.dtype)), [spec.num_tokens, spec.num_channels])


def shard_schema(specs: Sequence[ModalitySpec], metadata: dict[str, Any]) -> pa.Schema:
    """The Arrow schema of one shard; its metadata alone explains the file.

    Raises:
        UserError: no modality, or two of one name.
    """
    names = [spec.name for spec in specs]
    if not names or len(set(names)) != len(names):
        raise UserError(f"a shard needs at least one modality and no name twice, got {names}")
    fields = [pa.field("example_id", pa.binary(16), nullable=False)]
    for spec in specs:
        fields += [pa.field(spec.name, tensor_type(spec)), pa.field(hash_column(spec.name), pa.uint64())]
    fields += [
        pa.field("source", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("row_xxh3", pa.uint64(), nullable=False),
    ]
    described = {
        "format_version": FORMAT_VERSION,
        "modalities": [spec.to_dict() for spec in specs],
        "rows_per_batch": rows_per_batch(specs),
        "metadata": metadata,
    }
    return pa.schema(fields, metadata={METADATA_KEY: canonical_json(described).encode()})


def check_format_version(version: object, what: str) -> None:
    """Refuse what a newer release wrote.

    Raises:
        DataError: no version at all.
        UserError: a version above ``FORMAT_VERSION``.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DataError(f"{what} has no valid format_version (found {version!r}); it is damaged or not a token dataset")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{what} has format version {version}, this release reads up to {FORMAT_VERSION}; "
            f"install a newer release, or preprocess the source again with this one"
        )
