"""Datasets for the shard tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from shard_samples import build

from pipeline.shards.manifest import Manifest


@pytest.fixture
def build_dataset(tmp_path: Path) -> Callable[..., tuple[str, Manifest]]:
    """Makes a dataset in a fresh folder and returns the folder and its manifest."""

    def make(**counts: int) -> tuple[str, Manifest]:
        named = {name.replace("_", "-"): count for name, count in (counts or {"train_00000": 30}).items()}
        return str(tmp_path / "dataset"), build(str(tmp_path / "dataset"), named)

    return make
