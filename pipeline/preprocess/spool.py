"""Examples of one file, held back until the whole file has decoded, in bounded memory."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO

from pipeline.preprocess.decode import DecodedExample

_MEMORY_BYTES = 128 * 2**20


class ExampleSpool:
    """Keeps the first examples in memory and the rest in an unnamed temporary file."""

    def __init__(self, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._free_bytes = memory_bytes
        self._held: list[DecodedExample] = []
        self._spilled = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> ExampleSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._held) + self._spilled

    def add(self, example: DecodedExample) -> None:
        """Append one example."""
        size = sum(array.nbytes for array in example.arrays.values() if array is not None)
        if self._file is None and size <= self._free_bytes:
            self._free_bytes -= size
            self._held.append(example)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="hip_spool_")  # noqa: SIM115 - closed by __exit__
        pickle.dump(example, self._file, protocol=5)
        self._spilled += 1

    def __iter__(self) -> Iterator[DecodedExample]:
        """Every example in the order of adding."""
        yield from self._held
        if self._file is not None:
            self._file.seek(0)
            for _ in range(self._spilled):
                yield pickle.load(self._file)
