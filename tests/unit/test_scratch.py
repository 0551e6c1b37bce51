"""Scratch folders go with their process: closed, forgotten, or killed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline import scratch
from pipeline.scratch import ScratchFolder

MAKE_AND_WAIT = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from pipeline.scratch import ScratchFolder
folder = ScratchFolder("test")
(folder.path / "large.bin").write_bytes(bytes(1000))
print(folder.path, flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch._sweep_up.cache_clear()
    return tmp_path


def start(temporary: Path, then: str) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE_AND_WAIT, str(temporary), then], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_folder_ends_with_its_block_or_with_its_object(temporary: Path) -> None:
    with ScratchFolder("test") as folder:
        (folder / "a").write_text("x")
        assert names(folder) == ["a"]
    assert names(temporary) == []
    forgotten = ScratchFolder("test")
    assert forgotten.path.is_dir()
    del forgotten
    gc.collect()
    assert names(temporary) == []


def test_an_error_in_the_block_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(ValueError, match="oh"), ScratchFolder("test"):
        raise ValueError("oh")
    assert names(temporary) == []


def test_a_process_that_ends_leaves_nothing(temporary: Path) -> None:
    process, _ = start(temporary, "end")
    assert process.wait() == 0
    assert names(temporary) == []


def test_what_a_killed_process_left_is_deleted_by_the_next_and_what_is_in_use_is_kept(temporary: Path) -> None:
    killed, left = start(temporary, "wait")
    living, used = start(temporary, "wait")
    other = temporary / ".hip-scratch-without-a-lock"
    other.mkdir()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "large.bin").is_file()
        with ScratchFolder("test"):
            assert not left.parent.exists()
            assert (used / "large.bin").is_file()
            assert other.is_dir()
    finally:
        living.kill()
        living.wait()


def test_a_folder_beside_its_place_is_swept_there(tmp_path: Path) -> None:
    folder = ScratchFolder("download", tmp_path)
    (folder.path / "model.bin").write_text("weights")
    (folder.path / "model.bin").replace(tmp_path / "model.bin")
    left = tmp_path / ".hip-scratch-killed"
    left.mkdir()
    (left / "owner.lock").touch()
    scratch._sweep_up.cache_clear()
    ScratchFolder("download", tmp_path).close()
    folder.close()
    assert names(tmp_path) == ["model.bin"]


def test_the_folder_of_a_process_is_not_deleted_by_its_fork(temporary: Path) -> None:
    with ScratchFolder("test") as folder:
        child = os.fork()
        if child == 0:
            scratch._sweep_up.cache_clear()
            try:
                ScratchFolder("other").close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert folder.is_dir()
