"""A trial that Ray's memory monitor kills: its own failure, and the others go on."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fault

DRIVER = Path(__file__).with_name("memory_driver.py")


def test_a_trial_killed_for_memory_does_not_end_the_search() -> None:
    done = subprocess.run([sys.executable, DRIVER], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == ["small: 1.0", "large: out of memory"]
