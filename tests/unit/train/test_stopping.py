"""Stopping in order, and being stopped by the watchdog."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.errors import Interrupted
from pipeline.train.checkpoint import latest_checkpoint, read_state
from pipeline.train.options import CheckpointOptions, PretrainOptions
from pipeline.train.runner import run_pretraining
from pipeline.train.signals import stop_on_signals
from pipeline.train.watchdog import HANG_EXIT_CODE, StopFile


@pytest.fixture
def _no_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_no_nohup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_says_how_to_go_on_and_costs_no_step(
    make_options: Callable[..., PretrainOptions], tmp_path: Path, number: signal.Signals
) -> None:
    losses: dict[int, float] = {}

    def report(step: int, metrics: Mapping[str, float]) -> bool:
        losses[step] = metrics["loss"]
        if step == 3:
            os.kill(os.getpid(), number)
        return False

    options = make_options(checkpoint=CheckpointOptions(every_steps=100))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"continue with: hip pretrain shards=.* run\.name=run") as caught:
        run_pretraining(options, report)
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is before
    run_folder = tmp_path / "runs" / "run"
    assert json.loads((run_folder / "run.json").read_text())["status"] == "interrupted"
    newest = latest_checkpoint(str(run_folder))
    assert newest is not None
    assert read_state(newest).step == max(losses)
    stopped_at = max(losses)
    run_pretraining(options, report=lambda step, metrics: losses.update({step: metrics["loss"]}) or False)
    assert stopped_at < 8
    assert sorted(losses) == list(range(1, 9))


def test_a_closed_terminal_is_nothing_to_a_run_under_nohup(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = threading.Event()
    try:
        with stop_on_signals(str(tmp_path), stop):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not stop.is_set()


def test_a_signal_while_the_storage_is_away_is_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wall").write_text("in the way")
    stop = threading.Event()
    with stop_on_signals(str(tmp_path / "wall" / "run"), stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        assert "cannot be told to stop" in caplog.text
        with pytest.raises(Interrupted, match="at once"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_hang_ends_the_process_and_leaves_its_stacks(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pipeline.train.watchdog import Watchdog\n"
        "def stuck_in_a_collective(): time.sleep(60)\n"
        "Watchdog(sys.argv[1], 3, 0.5).start(); stuck_in_a_collective()"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert ended.returncode == HANG_EXIT_CODE
    (stacks,) = (tmp_path / "stacks").glob("rank-3-*.txt")
    assert "stuck_in_a_collective" in stacks.read_text()


def test_a_stop_request_reaches_a_worker_through_the_run_folder(tmp_path: Path) -> None:
    stop = StopFile(str(tmp_path))
    stop.start()
    assert not stop.is_set()
    (tmp_path / "stop").touch()
    deadline = time.monotonic() + 20
    while not stop.is_set() and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.close()
    assert stop.is_set()
