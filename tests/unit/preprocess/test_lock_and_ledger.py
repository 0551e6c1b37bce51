"""One writer per folder, and a ledger that knows what is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.preprocess import remote_lock
from pipeline.preprocess.ledger import LedgerRow, TaskRecord, forget, load_done, write_quarantine
from pipeline.preprocess.lock import dataset_lock
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter
from pipeline.storage import exists, join, read_bytes
from pipeline.tracking.orphans import this_owner

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


BUCKET = "memory://locked/set"


@pytest.fixture
def left_lock() -> Iterator[Callable[..., None]]:
    """Writes the lock that another process is to have left in a bucket."""
    memory = fsspec.filesystem("memory")

    def leave(**values: object) -> None:
        lock = {"process": 1, "host": "far", "owner": "far/1:1:0.00", "token": "theirs", "beat": time.time(), **values}
        memory.pipe_file("/locked/set/.preprocess.lock", json.dumps(lock).encode())

    yield leave
    assert memory.find("/locked") in ([], ["/locked/set/.preprocess.lock"])
    if memory.exists("/locked"):
        memory.rm("/locked", recursive=True)


def test_a_bucket_is_refused_while_its_holder_lives(left_lock: Callable[..., None]) -> None:
    left_lock(beat=time.time() - 100)
    with pytest.raises(UserError, match=r"process 1 on far.*lapses in (499|500) s.*delete memory://"):
        dataset_lock(BUCKET).__enter__()
    left_lock(owner=this_owner(), beat=time.time() - 601)  # a machine that slept: nothing was heard for long
    with dataset_lock(BUCKET), pytest.raises(UserError, match=f"process {os.getpid()} on "), dataset_lock(BUCKET):
        pass
    assert not exists(join(BUCKET, ".preprocess.lock"))


def test_a_bucket_is_free_when_its_holder_was_killed_here(left_lock: Callable[..., None]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    machine = this_owner().rpartition(":")[0].rpartition(":")[0]
    left_lock(owner=f"{machine}:{dead.pid}:{time.time():.2f}")
    with dataset_lock(BUCKET):
        pass


def test_a_holder_keeps_its_lock_fresh_and_tells_of_one_who_took_it(
    left_lock: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_lock, "BEAT_SECONDS", 0.1)

    def beat() -> float:
        return float(json.loads(read_bytes(join(BUCKET, ".preprocess.lock")))["beat"])

    with dataset_lock(BUCKET):
        first = beat()
        time.sleep(0.5)
        assert beat() > first
        left_lock()
        time.sleep(0.5)
    assert "taken by another run (process 1 on far)" in caplog.text
    assert exists(join(BUCKET, ".preprocess.lock"))  # not ours any more


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
