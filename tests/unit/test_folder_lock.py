"""One writer per folder, also where the system locks nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import fsspec
import psutil
import pytest

from pipeline import beating_lock
from pipeline.errors import UserError
from pipeline.folder_lock import folder_lock
from pipeline.owner import owner_lives, this_machine, this_owner
from pipeline.storage import exists, join, read_bytes

BUCKET = "memory://locked/set"
FILE = join(BUCKET, ".lock")


def hold(folder: str = BUCKET) -> AbstractContextManager[None]:
    return folder_lock(folder, ".lock", "it is held", "go away")


@pytest.fixture
def left_lock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes the lock that another process is to have left in a bucket; a minute is half a second here."""
    monkeypatch.setattr(beating_lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(beating_lock, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(beating_lock, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(beating_lock, "_SETTLE_SECONDS", 0.2)
    memory = fsspec.filesystem("memory")

    def leave(**values: object) -> None:
        lock = {"process": 1, "host": "far", "owner": "far/1:1:0.00", "token": "theirs", "beat": time.time(), **values}
        memory.pipe_file("/locked/set/.lock", json.dumps(lock).encode())

    yield leave
    if memory.exists("/locked"):
        memory.rm("/locked", recursive=True)


def test_a_bucket_is_refused_while_its_holder_shows_life(left_lock: Callable[..., None]) -> None:
    left_lock()
    beats = threading.Timer(0.2, left_lock)
    beats.start()
    with pytest.raises(UserError, match=r"^it is held \(process 1 on far\); go away$"), hold():
        pass
    beats.join()
    left_lock(owner=this_owner(), process=os.getpid(), host="here")  # known to live: nothing to wait for
    with pytest.raises(UserError, match=rf"held \(process {os.getpid()} on here"), hold():
        pass


def test_a_bucket_is_free_when_its_holder_is_dead_or_silent(
    left_lock: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_lock(owner=f"{this_machine()}:{dead.pid}:{time.time():.2f}")
    with hold():
        assert "looking" not in caplog.text
    left_lock()
    with hold():
        assert "gave no sign of life: taking over" in caplog.text
    assert not exists(FILE)


def test_who_waits_for_a_holder_goes_on_when_it_is_gone(left_lock: Callable[..., None]) -> None:
    beating_lock.wait_while_held(FILE, 60.0)  # there is none
    with hold():
        began = time.monotonic()
        beating_lock.wait_while_held(FILE, 0.3)
        assert time.monotonic() - began > 0.25
        waiting = threading.Thread(target=beating_lock.wait_while_held, args=(FILE, 60.0))
        waiting.start()
    waiting.join(5.0)
    assert not waiting.is_alive()


def test_a_holder_in_the_middle_of_its_beat_still_holds(left_lock: Callable[..., None]) -> None:
    """Some stores show an empty file while it is written anew."""
    fsspec.filesystem("memory").pipe_file("/locked/set/.lock", b"")
    written = threading.Timer(0.1, left_lock, kwargs={"owner": this_owner(), "process": os.getpid(), "host": "here"})
    written.start()
    began = time.monotonic()
    beating_lock.wait_while_held(FILE, 0.4)
    assert time.monotonic() - began > 0.35
    written.join()


def test_a_process_lives_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the last start of the machine, as the system tells it, moves with the clock."""
    owner = this_owner()
    booted = psutil.boot_time()
    for stepped in (-3600.0, 1.0):
        monkeypatch.setattr("psutil._psplatform.boot_time", lambda stepped=stepped: booted + stepped)
        assert owner_lives(owner)


def test_of_two_that_start_at_once_one_holds_the_bucket(left_lock: Callable[..., None]) -> None:
    outcomes: list[str] = []

    def start() -> None:
        try:
            with hold():
                outcomes.append("held")
                time.sleep(0.5)
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


def test_a_holder_keeps_its_lock_fresh_and_tells_of_one_who_took_it(
    left_lock: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    with hold():
        first = json.loads(read_bytes(FILE))["beat"]
        time.sleep(0.5)
        assert json.loads(read_bytes(FILE))["beat"] > first
        left_lock()
        time.sleep(0.5)
    assert "taken by another run (process 1 on far)" in caplog.text
    assert exists(FILE)  # not ours any more


def test_a_file_system_without_locks_is_held_as_a_bucket_is(
    left_lock: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with hold(str(tmp_path)):
        with pytest.raises(UserError, match=rf"held \(process {os.getpid()} on "), hold(str(tmp_path)):
            pass
        assert json.loads((tmp_path / ".lock").read_bytes())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
