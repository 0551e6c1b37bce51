"""Steps timed in turns: a machine that slows down slows both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from training_data import write_dataset

from hip_model.variants import model_config
from pipeline.shards.manifest import Manifest
from pipeline.train.options import BatchOptions, EngineOptions, ModelOptions, PretrainOptions
from pipeline.tune import timing
from pipeline.tune.timing import Comparison, StepTimer, Trained, compare_steps


def trained(model: str) -> Trained:
    options = PretrainOptions(
        shards="shards",
        model=ModelOptions(model),
        batch=BatchOptions(4),
        engine=EngineOptions(kind="torch", precision="fp32"),
    )
    return model_config(model), options


def test_a_model_takes_as_long_as_itself_and_a_larger_one_longer(tmp_path: Path) -> None:
    manifest = Manifest.load(write_dataset(tmp_path / "shards"))
    same = compare_steps(trained("hip_nano"), trained("hip_nano"), manifest)
    assert 0.8 < same.quotient < 1.25
    assert same.reference_seconds > 0
    assert compare_steps(trained("hip_nano"), trained("hip_micro"), manifest).quotient > 1.5


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_step_that_is_timed_recomputes_as_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recomputes: bool
) -> None:
    manifest, built = Manifest.load(write_dataset(tmp_path / "shards")), []
    original = timing.build_autoencoder
    monkeypatch.setattr(timing, "build_autoencoder", lambda *words: built.append(original(*words)) or built[-1])
    config, options = trained("perceiver_tiny")
    engine = replace(options.engine, activation_checkpointing=recomputes)
    assert timing.measure_step((config, replace(options, engine=engine)), manifest) > 0
    assert [autoencoder.model.recompute_blocks for autoencoder in built] == [recomputes] * len(built)
    assert built


def test_seconds_are_those_of_the_moment_when_the_reference_was_timed(tmp_path: Path) -> None:
    manifest = Manifest.load(write_dataset(tmp_path / "shards"))
    speeds = iter([1.0, 5.0, 0.2])  # of the machine, at each comparison

    def compare(reference: Trained, other: Trained, data: Manifest) -> Comparison:
        quotient = 1.0 if other == reference else 1.5
        return Comparison(0.1 * next(speeds), quotient, 0.0)

    seconds = StepTimer(trained("hip_nano"), manifest, compare)
    assert seconds(*trained("hip_nano")) == 0.1
    assert seconds(*trained("hip_micro")) == 0.1 * 1.5
    assert seconds(*trained("hip_micro")) == 0.1 * 1.5
