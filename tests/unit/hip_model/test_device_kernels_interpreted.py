"""The device kernels on CPU, by Triton's interpreter, which computes what the compiled kernel would."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Older interpreters do not run with this numpy.
TRITON = "triton>=3.9"


def test_device_kernels_equal_their_naive_twins_in_the_interpreter(tmp_path: Path) -> None:
    # An environment of its own: on CPU, Triton is no dependency, and DeepSpeed acts differently where it finds it.
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", TRITON]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"triton could not be installed: {installed.stderr.strip().splitlines()[-1:]}")
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    tests = ["tests/unit/hip_model/test_device_kernels.py", "tests/unit/test_bench_adamw.py"]
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout, done.stdout[-500:]
