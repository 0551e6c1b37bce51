"""Pretraining on several datasets at once: the shares that were asked for, and an exact resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_data import IMAGE, SOUND, write_dataset

from pipeline.errors import UserError
from pipeline.ingest.options import IngestOptions
from pipeline.preprocess.combine import CombineOptions, run_combine
from pipeline.shards.manifest import Manifest
from pipeline.train.build import TrainingData, is_complete_data
from pipeline.train.options import DurationOptions, RunOptions, ScheduleOptions, ValidationOptions
from pipeline.train.runner import run_pretraining


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    pictures = write_dataset(folder / "pictures", 40, 4, (IMAGE,))
    return pictures, write_dataset(folder / "sounds", 8, 8, (SOUND,))


@pytest.fixture(scope="module")
def combined(members, tmp_path_factory) -> str:
    place = str(tmp_path_factory.mktemp("all"))
    run_combine(CombineOptions(members, place, (1, 3)))
    return place


@pytest.mark.parametrize("order", ["global", "blocks"])
def test_each_dataset_gets_its_share_of_the_draws(make_options, combined, order) -> None:
    options = make_options(shards=combined, ingest=IngestOptions(order=order))
    data = TrainingData.open(options, Manifest.load(combined), 0, 1)
    assert not is_complete_data(data.reader.manifest)
    with data.loader(0) as loader:
        batches = [next(loader) for _ in range(6)]  # one epoch: as many draws as there are examples
    sound = torch.cat([batch.present["audio"] for batch in batches])
    picture = torch.cat([batch.present["image"] for batch in batches])
    assert (sound != picture).all()
    assert int(sound.sum()) == pytest.approx(36, abs=1)
    keys = {
        (int(example), int(epoch), bool(is_sound))  # both name their examples alike
        for batch in batches
        for example, epoch, is_sound in zip(batch.example_ids, batch.epochs, batch.present["audio"], strict=True)
    }
    assert len(keys) == 48, "a sound that comes again is masked anew"


def test_without_shares_an_epoch_is_every_example_once(make_options, members, tmp_path) -> None:
    run_combine(CombineOptions(members, str(tmp_path / "all")))
    everything = str(tmp_path / "all")
    data = TrainingData.open(make_options(shards=everything), Manifest.load(everything), 0, 1)
    assert sorted(data.order.indices(0, 48).tolist()) == list(range(48))


def test_a_run_on_both_goes_on_bit_for_bit_and_is_validated_on_both(make_options, combined) -> None:
    steady = ScheduleOptions(kind="constant", warmup_share=0)
    options = make_options(shards=combined, schedule=steady, validation=ValidationOptions(every_steps=4, examples=6))
    whole = run_pretraining(options)
    part = replace(options, run=RunOptions("part"))
    run_pretraining(replace(part, duration=DurationOptions(steps=4)))
    continued = run_pretraining(part)
    first, second = (load_file(Path(result.checkpoint) / "model.safetensors") for result in (whole, continued))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {"validation/loss/image", "validation/loss/audio"} <= whole.metrics.keys()
    assert all(np.isfinite(value) for value in whole.metrics.values())


def test_other_shares_are_another_dataset(make_options, members, combined, tmp_path) -> None:
    options = make_options(shards=combined, duration=DurationOptions(steps=1))
    run_pretraining(options)
    run_combine(CombineOptions(members, str(tmp_path / "even"), (1, 1)))
    assert Manifest.load(str(tmp_path / "even")).fingerprint != Manifest.load(combined).fingerprint
    with pytest.raises(UserError, match="fingerprint"):
        run_pretraining(replace(options, shards=str(tmp_path / "even"), duration=DurationOptions(steps=2)))
