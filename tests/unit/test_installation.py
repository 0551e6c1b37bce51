"""What ``deploy/install.sh`` leaves behind."""

import sys
from importlib.util import cache_from_source
from pathlib import Path

import deepspeed
import mlflow
import pytest
import ray
import torch


@pytest.mark.skipif(not (Path(sys.prefix) / ".installed").exists(), reason="not installed by deploy/install.sh")
@pytest.mark.parametrize("package", [torch, ray, deepspeed, mlflow], ids=lambda package: package.__name__)
def test_packages_are_compiled(package):
    """Else every process of a run compiles them again where PYTHONDONTWRITEBYTECODE is set: half a minute a start."""
    assert Path(cache_from_source(package.__file__)).is_file()
