"""Killed at any moment and run again, preprocessing gives the very bytes of an uninterrupted run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.demo.clips import make_demo_clips
from pipeline.errors import InfrastructureError

DRIVER = Path(__file__).with_name("preprocess_driver.py")
_LIMIT_SECONDS = 240.0
VICTIMS = ("worker", "driver", "raylet", "node")
MARKS = {"worker": ("ray::", "import serve"), "raylet": ("/raylet/raylet ",)}
"""Command lines of what makes shards (a Ray worker or its decoding child), and of Ray's own process of a machine."""


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(source: Path, shards: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(DRIVER), str(source), str(shards)], start_new_session=True)


def finish(source: Path, shards: Path) -> None:
    """Run until nothing is left to do; what the machine could not give (exit code 5) is asked for again."""
    for _ in range(3):
        code = start(source, shards).wait(timeout=_LIMIT_SECONDS)
        if code != InfrastructureError.exit_code:
            break
    assert code == 0


def processes_below(driver: subprocess.Popen[bytes], marks: tuple[str, ...]) -> list[psutil.Process]:
    """The processes that the driver started, at any depth, whose command line has one of the marks."""
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(driver.pid).children(recursive=True)
        return [process for process in below if any(mark in command_line(process) for mark in marks)]
    return []


def command_line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline())
    return ""


def wait_for_work(driver: subprocess.Popen[bytes], shards: Path, delay_seconds: float) -> None:
    """Until the first shard file appears (finished or not), and then a while; the start of Ray takes most of a run."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while driver.poll() is None and time.monotonic() < deadline:
        if any("train-" in path.name or "validation-" in path.name for path in shards.rglob("*")):
            break
        time.sleep(0.02)
    time.sleep(delay_seconds)


def kill_tree(driver: subprocess.Popen[bytes]) -> None:
    """As when a machine loses power: the driver and everything that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    driver.kill()
    driver.wait()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    make_demo_clips(folder, 60, seed=1, size_pixels=128, num_images=0)
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The dataset of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "tokens"
    finish(source, folder)
    return digest(folder)


def strike(seed: int, source: Path, shards: Path) -> None:
    """One run that is hit once, at a moment and in a place that the seed decides; a lost worker ends no run."""
    dice = random.Random(seed)
    driver = start(source, shards)
    try:
        if dice.random() < 0.2:
            time.sleep(dice.uniform(0.5, 8.0))
        else:
            wait_for_work(driver, shards, dice.uniform(0.0, 1.5))
        victim = VICTIMS[seed % len(VICTIMS)]
        if victim in ("worker", "raylet"):
            for process in dice.sample(found := processes_below(driver, MARKS[victim]), min(1, len(found))):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            driver.wait(timeout=_LIMIT_SECONDS)
        elif victim == "driver":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        else:
            kill_tree(driver)
    finally:
        kill_tree(driver)


def check(seed: int, source: Path, whole: dict[str, str], shards: Path) -> None:
    strike(seed, source, shards)
    finish(source, shards)
    assert digest(shards) == whole


@pytest.mark.integration
@pytest.mark.parametrize("seed", [3])
def test_killed_once(seed: int, source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    check(seed, source, whole, tmp_path / "tokens")


@pytest.mark.fault
@pytest.mark.parametrize("seed", range(100, 120))
def test_killed_at_random_moments(seed: int, source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    check(seed, source, whole, tmp_path / "tokens")


@pytest.mark.fault
def test_killed_again_and_again(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    for seed in range(5):
        strike(seed, source, tmp_path / "tokens")
    finish(source, tmp_path / "tokens")
    assert digest(tmp_path / "tokens") == whole


def test_environment_is_clean_of_other_clusters() -> None:
    """The runs above must start their own Ray: an address in the environment would send them to another one."""
    assert "RAY_ADDRESS" not in os.environ
