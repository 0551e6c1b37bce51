"""A terminal that is closed while a run goes on: it saves and stops in order, with Ray."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from training_data import write_dataset

from pipeline.train.checkpoint import latest_checkpoint, read_state

pytestmark = pytest.mark.integration


def take_terminal() -> None:
    """Make standard input the controlling terminal of a new session, as a shell in a terminal has it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(terminal: int, wanted: bytes, seconds: float = 120.0) -> bytes:
    said, end = b"", time.monotonic() + seconds
    while wanted not in said and time.monotonic() < end:
        said += os.read(terminal, 4096)
    return said


def test_a_run_saves_and_stops_when_its_terminal_is_closed(tmp_path: Path) -> None:
    shards = write_dataset(tmp_path / "shards", train=24, validation=0)
    # fmt: off
    options = [
        f"shards={shards}", f"storage={tmp_path}/runs", "run.name=run", "model=hip_nano", "batch.global_size=8",
        "duration.steps=100000", "checkpoint.every_steps=100000", "validation.every_steps=0", "figures.every_steps=0",
        "metrics.every_steps=10", "scale.workers=1", "ray.num_cpus=2", "tracking.enabled=false",
    ]
    # fmt: on
    ours, theirs = os.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "jobs", "pretrain", *options],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    try:
        assert b"step 20/" in read_until(ours, b"step 20/")
    finally:
        os.close(ours)
    assert run.wait(timeout=90) == 130
    assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["status"] == "interrupted"
    newest = latest_checkpoint(str(tmp_path / "runs" / "run"))
    assert newest is not None
    assert read_state(newest).step >= 20
