"""What the manifest knows of one finished shard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DataError, UserError
from pipeline.shards.framing import BatchRecord
from pipeline.shards.statistics import ChannelSums

_FILE_NAME = re.compile(r"(?P<split>[a-z][a-z0-9_]*)-[0-9]{5,}\.arrow")


@dataclass(frozen=True)
class ShardRecord:
    """One shard: ``name`` is its file inside the dataset folder, ``xxh3_128`` the checksum of the whole file.

    ``rows_per_batch`` is the size of its record batches (the last may be shorter); ``statistics`` are per modality.
    """

    name: str
    split: str
    rows: int
    bytes: int
    xxh3_128: str
    statistics: Mapping[str, ChannelSums]
    rows_per_batch: int
    batches: tuple[BatchRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; ``from_dict`` reads it back."""
        return {
            "name": self.name,
            "split": self.split,
            "rows": self.rows,
            "bytes": self.bytes,
            "xxh3_128": self.xxh3_128,
            "rows_per_batch": self.rows_per_batch,
            "batches": [batch.to_list() for batch in self.batches],
            "statistics": {name: sums.to_dict() for name, sums in self.statistics.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ShardRecord:
        """Read what ``to_dict`` gave.

        Raises:
            DataError: a missing key, a negative count, or a name that is not a plain shard file name.
        """
        try:
            record = cls(
                name=str(values["name"]),
                split=str(values["split"]),
                rows=int(values["rows"]),
                bytes=int(values["bytes"]),
                xxh3_128=str(values["xxh3_128"]),
                statistics={name: ChannelSums.from_dict(sums) for name, sums in values["statistics"].items()},
                rows_per_batch=int(values["rows_per_batch"]),
                batches=tuple(
                    BatchRecord(int(offset), int(size), str(header), str(rows))
                    for offset, size, header, rows in values["batches"]
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the manifest describes a shard wrongly: {error!r}") from error
        record.check_counts()
        if split_of(record.name) != record.split:
            raise DataError(f"the manifest puts {record.name!r} into split {record.split!r}; its name says another")
        return record

    def check_counts(self) -> None:
        """Refuse counts that cannot be true.

        Raises:
            DataError: negative rows, a wrong number of batches, or a batch outside the file.
        """
        wanted = -(-self.rows // self.rows_per_batch) if self.rows_per_batch > 0 else -1
        inside = all(batch.offset >= 0 and 0 < batch.bytes <= self.bytes - batch.offset for batch in self.batches)
        if self.rows < 0 or wanted != len(self.batches) or not inside:
            raise DataError(f"the manifest gives {self.name!r} impossible counts")


def split_of(file_name: str) -> str:
    """The split that a shard's file name states: ``train-00000.arrow`` is in ``train``.

    Raises:
        DataError: not such a name; so a manifest can never point outside its folder.
    """
    match = _FILE_NAME.fullmatch(file_name)
    if match is None:
        raise DataError(
            f"{file_name!r} is not a shard name (wanted like 'train-00000.arrow', in the dataset folder itself); "
            "the manifest was changed by hand or is not ours"
        )
    return match["split"]


def shard_file_name(name: str) -> str:
    """``train-00000`` as a file name.

    Raises:
        UserError: a name without a split and a number.
    """
    file_name = name.removesuffix(".arrow") + ".arrow"
    if _FILE_NAME.fullmatch(file_name) is None:
        raise UserError(f"shard name {name!r} is not usable; wanted <split>-<5 digits>, like 'train-00000'")
    return file_name
