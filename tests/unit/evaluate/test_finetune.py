"""Fine-tuning on a tiny real dataset: it learns, resumes bit for bit, and refuses what cannot work."""

import json
import logging
import os
import re
import resource
import shutil
import signal
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_data import AUDIO, IMAGE, ModalitySpec, example, write_dataset
from safetensors.torch import load, load_file, save_file

from pipeline.errors import Interrupted, UserError
from pipeline.evaluate import finetune_loop as module
from pipeline.evaluate.finetune import finetune
from pipeline.evaluate.finetune_data import LabelledSplit
from pipeline.evaluate.finetune_options import FinetuneOptions, HeadOptions, TrainerOptions
from pipeline.evaluate.mixing import MixOptions
from pipeline.evaluate.options import IntervalOptions
from pipeline.preprocess.combine import CombineOptions, run_combine
from pipeline.shards.manifest import Manifest
from pipeline.storage import exists, join, read_bytes
from pipeline.tracking.options import TrackingOptions
from pipeline.train.options import (
    AugmentOptions,
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    ModelOptions,
    OptimOptions,
    RunOptions,
    ScheduleOptions,
)


@pytest.fixture
def settings(shards, model_folder, tmp_path):
    def make(**changes):
        given = {
            "shards": shards,
            "init": model_folder,
            "storage": str(tmp_path / "runs"),
            "run": RunOptions(name="tuned"),
            "batch": BatchOptions(global_size=12),
            "duration": DurationOptions(steps=20),
            "optim": OptimOptions(learning_rate=3e-3),
            "checkpoint": CheckpointOptions(every_steps=8),
            "interval": IntervalOptions(resamples=50),
            "tracking": TrackingOptions(enabled=False),
        }
        return FinetuneOptions(**(given | changes))

    return make


def _weights(result):
    model, head = (load(read_bytes(join(result.checkpoint, f"{name}.safetensors"))) for name in ("model", "head"))
    return model | head


def test_full_finetuning_learns_and_leaves_a_model_with_head(settings):
    result = finetune(settings())
    assert result.losses[0] == pytest.approx(1.0986, abs=1e-3)  # the head starts at zero: the loss of guessing
    assert result.losses[-1] < 0.5
    assert result.metrics["top1"].value > 0.8
    status = json.loads((Path(result.run_folder) / "run.json").read_text())
    assert (status["status"], status["name"], status["step"]) == ("finished", "tuned", 20)
    assert result.report is not None
    assert Path(result.report.html_path).exists()


def test_a_batch_that_does_not_fit_names_one_that_may(settings):
    finetune(settings(run=RunOptions(name="first"), duration=DurationOptions(steps=1)))  # all is imported by now
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limits[1]))
    try:
        with pytest.raises(UserError, match=r"4096 examples at once .*batch\.per_worker_size=2048"):
            finetune(settings(batch=BatchOptions(global_size=4096), head=HeadOptions(scale_examples=2)))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_from_scratch_needs_no_model(settings):
    result = finetune(settings(init=None, model=ModelOptions(name="hip_nano"), duration=DurationOptions(steps=3)))
    assert len(result.losses) == 3


def test_probe_mode_moves_the_head_alone(settings, model_folder):
    result = finetune(settings(mode="probe"))
    before, after = load_file(Path(model_folder) / "model.safetensors"), _weights(result)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert after["weight"].abs().max() > 0
    assert result.losses[-1] < result.losses[0]


def test_layerwise_decay_moves_deep_blocks_less(settings, model_folder):
    result = finetune(
        settings(mode="layerwise", optim=OptimOptions(learning_rate=3e-3, layer_decay=0.1, weight_decay=0))
    )
    before, after = load_file(Path(model_folder) / "model.safetensors"), _weights(result)

    def moved(name):
        return float((after[name] - before[name]).abs().mean())

    assert 0 < moved("embed.image.weight") < 0.2 * moved("blocks.1.cross_attention.query.weight")


@pytest.mark.parametrize("remote", [False, True])
def test_stopped_and_continued_equals_uninterrupted(settings, monkeypatch, remote):
    place = {"storage": f"memory://{uuid.uuid4().hex}"} if remote else {}
    noisy = {
        "augment": AugmentOptions(crop_min_area=0.5, flip=0.5, rand_layers=2, audio_shift=0.2, audio_gain_decibel=3),
        "mix": MixOptions(mixup=0.4, cutmix=1.0),
        "class_balance": 0.7,
    }
    whole = finetune(settings(run=RunOptions(name="whole"), **noisy))
    original, seen = module.after_step, []

    def stop_once(run, loss):
        original(run, loss)
        seen.append(run.state.step)
        if len(seen) == 11:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "after_step", stop_once)
    with pytest.raises(Interrupted, match="step 11 of 20"):
        finetune(settings(run=RunOptions(name="cut"), **noisy, **place))
    resumed = finetune(settings(run=RunOptions(name="cut"), **noisy, **place))
    assert seen == list(range(1, 21))
    assert not exists(join(resumed.run_folder, "stop"))
    assert resumed.losses == whole.losses[11:]
    expected, found = _weights(whole), _weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_rare_classes_come_as_often_as_common_ones_when_asked(settings, tmp_path):
    kinds = [0] * 24 + [1] * 4 + [2] * 2
    rows = {"train": [example(3 * index + kind, "train") for index, kind in enumerate(kinds)]}
    options = settings(shards=write_dataset(tmp_path / "skewed", rows), class_balance=1.0)
    manifest = Manifest.load(options.shards)
    data = LabelledSplit.open(options, manifest, manifest.modalities)
    drawn = data.reader.read(np.sort(data.order.indices(0, 30)), out={}).labels
    assert np.bincount([label for (label,) in drawn]).tolist() == pytest.approx([10, 10, 10], abs=1)
    assert finetune(options).losses[-1] < 0.8


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_shares_of_a_combined_dataset_hold_whatever_labels_its_examples_have(settings, tmp_path, balance):
    several = [example(index, "train", labels=(0, 1, 2) if index % 2 else (index % 3,)) for index in range(12)]
    one = [example(100 + index, "train", labels=(0,)) for index in range(36)]
    members = [write_dataset(tmp_path / name, {"train": rows}) for name, rows in (("several", several), ("one", one))]
    run_combine(CombineOptions(tuple(members), str(tmp_path / "both"), (1, 1)))
    options = settings(shards=str(tmp_path / "both"), class_balance=balance)
    manifest = Manifest.load(options.shards)
    data = LabelledSplit.open(options, manifest, manifest.modalities)
    drawn = np.bincount(data.order.indices(0, 48), minlength=48)
    if not balance:
        assert drawn[:12].tolist() == [2] * 12  # 24 of 48 draws, an example with several labels no more often
    else:
        assert drawn[1] > drawn[12]  # it has the rare classes, too


def test_same_seed_same_weights_other_seed_other_weights(settings):
    results = [
        _weights(finetune(settings(run=RunOptions(name=name), seed=seed, duration=DurationOptions(steps=4))))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert torch.equal(results[0]["weight"], results[1]["weight"])
    assert not torch.equal(results[0]["weight"], results[2]["weight"])


def test_small_parts_of_a_batch_give_the_same_step(settings):
    whole = finetune(settings(run=RunOptions(name="whole"), duration=DurationOptions(steps=3)))
    parts = finetune(
        settings(
            run=RunOptions(name="parts"),
            duration=DurationOptions(steps=3),
            batch=BatchOptions(global_size=12, per_worker_size=5),
        )
    )
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)


def test_several_labels_train_a_multilabel_head(settings, tmp_path):
    rows = {
        split: [example(i, split, labels=(i % 3, (i + 1) % 3)) for i in range(count)]
        for split, count in (("train", 48), ("validation", 24))
    }
    result = finetune(settings(shards=write_dataset(tmp_path / "many", rows), duration=DurationOptions(steps=30)))
    assert result.metrics["mean_average_precision"].value > 0.8
    with pytest.raises(UserError, match="several labels"):
        finetune(settings(shards=str(tmp_path / "many"), task="classification", run=RunOptions(name="other")))


def test_another_resolution_needs_consent_and_then_trains(settings, tmp_path):
    big = ModalitySpec("image", (16, 16), 3, "uint8", sampling={"height": 16, "width": 16})
    rows = {}
    for split, count in (("train", 24), ("validation", 6)):
        rows[split] = [example(i, split) for i in range(count)]
        for row in rows[split]:
            image = row.arrays["image"].reshape(8, 8, 3).repeat(2, 0).repeat(2, 1)
            row.arrays["image"] = image.reshape(256, 3)
    shards = write_dataset(tmp_path / "big", rows, (big, AUDIO))
    with pytest.raises(UserError, match="resize_positions=true"):
        finetune(settings(shards=shards))
    result = finetune(settings(shards=shards, resize_positions=True, duration=DurationOptions(steps=2)))
    assert _weights(result)["positions.image.weight"].shape == (256, 16)


def test_same_name_with_other_settings_is_refused_with_the_difference(settings):
    finetune(settings(duration=DurationOptions(steps=2)))
    with pytest.raises(UserError, match="seed: 0 then, 1 now"):
        finetune(settings(duration=DurationOptions(steps=2), seed=1))
    with pytest.raises(UserError, match="resume=never"):
        finetune(settings(duration=DurationOptions(steps=2), resume="never"))
    with pytest.raises(UserError, match="resume=must"):
        finetune(settings(run=RunOptions(name="fresh"), resume="must"))


def test_a_block_that_is_not_there_leaves_no_run(settings, tmp_path):
    with pytest.raises(UserError, match="0 to 1 in this model"):
        finetune(settings(head=HeadOptions(level="9"), tracking=TrackingOptions()))
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_an_augmentation_without_its_signal_is_told(settings, caplog):
    finetune(settings(augment=AugmentOptions(points_jitter=0.1, flip=0.5), duration=DurationOptions(steps=1)))
    told = [record.getMessage() for record in caplog.records if "does nothing here" in record.getMessage()]
    assert told == ["augment.points_jitter=0.1 (it acts on points) does nothing here: the model reads image, audio"]


def test_what_an_example_lacks_is_blended_into_another_as_its_mean(settings, tmp_path, monkeypatch):
    rows = {s: [example(i, s, without="image" if i % 2 else None) for i in range(12)] for s in ("train", "validation")}
    original, seen = module.mix, []

    def watched(inputs, *rest):
        seen.append(inputs["image"].abs().sum((1, 2)))
        return original(inputs, *rest)

    monkeypatch.setattr(module, "mix", watched)
    shards = write_dataset(tmp_path / "halves", rows)
    finetune(settings(shards=shards, mix=MixOptions(mixup=0.5), duration=DurationOptions(steps=1)))
    assert sorted(int(row > 0) for row in seen[0]) == [0] * 6 + [1] * 6


def test_a_run_says_how_fast_it_is_and_how_long_it_takes(settings, caplog):
    with caplog.at_level(logging.INFO, "pipeline.evaluate.finetune_loop"):
        finetune(settings(metrics_every_steps=2, duration=DurationOptions(steps=3)))
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    form = r"step {}/3 \| loss \d\.\d{{4}} \| lr \S+ \| \S+ examples/s \| \d+ s left"
    assert len(told) == 2
    assert all(re.fullmatch(form.format(step), line) for step, line in zip((2, 3), told, strict=True)), told


def test_a_run_can_be_made_longer_but_not_trained_otherwise(settings):
    schedule = ScheduleOptions(kind="constant", warmup_share=0.0)
    short, long = DurationOptions(steps=2), DurationOptions(steps=5)
    whole = finetune(settings(run=RunOptions(name="whole"), schedule=schedule, duration=long))
    finetune(settings(schedule=schedule, duration=short))
    for trainer in (TrainerOptions(precision="bf16"), TrainerOptions(gradient_clip=0.1)):
        with pytest.raises(UserError, match=r"trainer\.\w+: \S+ then, \S+ now"):
            finetune(settings(schedule=schedule, duration=long, trainer=trainer))
    longer = finetune(settings(schedule=schedule, duration=long))
    assert longer.losses == whole.losses[2:]
    ends, expected = _weights(longer), _weights(whole)
    assert ends.keys() == expected.keys()
    assert all(torch.equal(ends[name], expected[name]) for name in expected)


def test_the_start_is_known_by_its_weights_wherever_they_are(settings, model_folder, tmp_path):
    finetune(settings(duration=DurationOptions(steps=2)))
    shutil.copytree(model_folder, tmp_path / "moved")
    assert len(finetune(settings(init=str(tmp_path / "moved"), duration=DurationOptions(steps=2))).losses) == 0
    weights = load_file(tmp_path / "moved" / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "moved" / "model.safetensors")
    with pytest.raises(UserError, match=r"init: weights \w+ then, weights \w+ now"):
        finetune(settings(init=str(tmp_path / "moved"), duration=DurationOptions(steps=2)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mode": "layerwise"}, r"optim\.layer_decay below 1"),
        ({"mode": "probe", "init": None}, "needs init="),
        ({"mode": "ful"}, "did you mean 'full'"),
    ],
)
def test_options_that_contradict_are_refused(settings, changes, named):
    with pytest.raises(UserError, match=named):
        settings(**changes)


def test_few_labels_use_only_the_first_examples(settings):
    from pipeline.evaluate.options import LimitOptions

    result = finetune(replace(settings(duration=DurationOptions(epochs=1)), limit=LimitOptions(fit_examples=24)))
    assert len(result.losses) == 2
    assert IMAGE.num_tokens == 64


@pytest.mark.parametrize("name", ["hip_nano", "timm/resnet18", "timm/hf_hub:owner/model"])
def test_a_run_without_a_name_gets_one_that_could_have_been_given(settings, shards, name):
    from pipeline.evaluate.finetune_resume import run_name
    from pipeline.evaluate.transfer import Start
    from pipeline.shards.manifest import Manifest

    options = settings(init=None, model=ModelOptions(name=name), run=RunOptions())
    made = run_name(options, Start(None, {}, {}), Manifest.load(shards))
    assert RunOptions(name=made).name == made
    assert name.rpartition("/")[-1] in made
