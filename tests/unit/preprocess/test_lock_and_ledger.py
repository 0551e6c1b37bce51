"""One writer per folder, and a ledger that knows what is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.preprocess.ledger import LedgerRow, TaskRecord, forget, load_done, write_quarantine
from pipeline.preprocess.lock import dataset_lock
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

SPEC = ModalitySpec("audio", (4,), 1, "int16")


def test_second_writer_is_refused_and_the_first_leaves_nothing(tmp_path: Path) -> None:
    with dataset_lock(str(tmp_path / "out")):
        with pytest.raises(UserError, match=f"another run.*{os.getpid()}"), dataset_lock(str(tmp_path / "out")):
            pass
        with dataset_lock(str(tmp_path / "other")):
            pass
    assert list((tmp_path / "out").iterdir()) == []
    with dataset_lock(str(tmp_path / "out")):
        pass


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(UserError, match="choose a folder"), dataset_lock(str(tmp_path / name)):
        pass


def test_lock_of_a_killed_process_does_not_hold(tmp_path: Path) -> None:
    code = (
        "import time\nfrom pipeline.preprocess.lock import dataset_lock\n"
        f"with dataset_lock({str(tmp_path)!r}):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(UserError, match=str(holder.pid)), dataset_lock(str(tmp_path)):
        pass
    holder.kill()
    holder.wait()
    with dataset_lock(str(tmp_path)):
        pass


def finished_task(dataset: Path, task: str) -> TaskRecord:
    """A task with a real shard of two rows, and its ledger."""
    with ShardWriter(str(dataset), task, [SPEC], {}) as writer:
        for number in range(2):
            writer.add(ExampleRow(bytes([number] * 16), "a.wav", 0.0, (), {"audio": np.zeros((4, 1), np.int16)}))
        shard = writer.close()
    rows = (
        LedgerRow("a.wav", "ab" * 16, "done", examples=2, bytes=9, seconds=2.0),
        LedgerRow("b.wav", "cd" * 16, "failed", reason="corrupt", detail="why"),
    )
    record = TaskRecord(task, "recipe1", (shard,), rows)
    record.save(str(dataset))
    return record


def test_done_means_ledger_and_whole_shard(tmp_path: Path) -> None:
    tasks = {name: finished_task(tmp_path, name) for name in ("train-00000", "train-00001", "train-00002")}
    assert load_done(str(tmp_path), "recipe1") == tasks
    assert load_done(str(tmp_path), "recipe2") == {}
    with (tmp_path / "train-00001.arrow").open("ab") as stream:
        stream.write(b"x")
    (tmp_path / "train-00002.arrow").unlink()
    assert load_done(str(tmp_path), "recipe1") == {"train-00000": tasks["train-00000"]}
    (tmp_path / "ledger/train-00000.parquet").write_bytes(b"PAR1 broken")
    assert load_done(str(tmp_path), "recipe1") == {}


@pytest.mark.parametrize("wrong", [{"shards": [{"name": "../elsewhere.arrow"}]}, {"shards": 3}, {"task": None}])
def test_a_ledger_that_says_nonsense_is_no_ledger(tmp_path: Path, wrong: dict[str, object]) -> None:
    finished_task(tmp_path, "train-00000")
    location = tmp_path / "ledger/train-00000.parquet"
    table = pq.read_table(location)
    head = {**json.loads(table.schema.metadata[b"hip_ledger"]), **wrong}
    head = {key: value for key, value in head.items() if value is not None}
    pq.write_table(table.replace_schema_metadata({"hip_ledger": json.dumps(head)}), location)
    assert load_done(str(tmp_path), "recipe1") == {}


def test_forgotten_tasks_are_undone(tmp_path: Path) -> None:
    finished_task(tmp_path, "train-00000")
    forget(str(tmp_path), "train-00000")
    assert load_done(str(tmp_path), "recipe1") == {}


def test_quarantine_is_sorted_and_repeatable(tmp_path: Path) -> None:
    rows = [LedgerRow(name, "00", "failed", reason="corrupt", detail="x", bytes=3) for name in ("b", "a")]
    write_quarantine(str(tmp_path), rows)
    first = (tmp_path / "quarantine.parquet").read_bytes()
    write_quarantine(str(tmp_path), rows[::-1])
    assert (tmp_path / "quarantine.parquet").read_bytes() == first
    table = pq.read_table(tmp_path / "quarantine.parquet").to_pydict()
    assert table["path"] == ["a", "b"]
    assert set(table) == {"path", "reason", "detail", "bytes", "content_hash"}
