"""A dataset without one of the model's modalities is as good as one whose examples all lack it."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation_data import IMAGE, example, write_dataset

from hip_model.export import load_metadata, save_pretrained
from hip_model.variants import build_model
from pipeline.errors import UserError
from pipeline.evaluate.finetune import finetune
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.options import EmbedOptions, IntervalOptions, MaskSweepOptions
from pipeline.evaluate.runner import evaluate
from pipeline.evaluate.session import open_session
from pipeline.evaluate.transfer import starting_model
from pipeline.registry.inference import Predictor
from pipeline.shards.manifest import Manifest
from pipeline.tracking.options import TrackingOptions
from pipeline.train.options import BatchOptions, CheckpointOptions, DurationOptions, OptimOptions, RunOptions

COUNTS = {"train": 30, "validation": 12}


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> tuple[str, str]:
    """The same pictures twice: with a column of missing sounds, and without one."""
    folder = tmp_path_factory.mktemp("silent")
    rows = {split: [example(i, split, without="audio") for i in range(count)] for split, count in COUNTS.items()}
    with_column = write_dataset(folder / "with_column", rows)
    for row in (row for split in rows.values() for row in split):
        del row.arrays["audio"]
    return with_column, write_dataset(folder / "without", rows, (IMAGE,))


def test_nothing_is_read_that_the_model_does_not_know(options, shards, tmp_path):
    """A model of sound on a dataset that also has pictures."""
    manifest = Manifest.load(shards)
    sound = manifest.read_as([spec for spec in manifest.modalities if spec.name == "audio"])
    model = build_model("hip_nano", [spec.to_modality() for spec in sound.modalities])
    save_pretrained(model, tmp_path / "sound", {"data": sound.data_card()})
    wanted = options(shards=shards, model=str(tmp_path / "sound"))
    session = open_session(wanted, str(tmp_path))
    assert list(session.reader("train").read(np.arange(3)).arrays) == ["audio"]
    assert 0 < evaluate(replace(wanted, task="linear_probe")).metrics["top1"].value <= 1
    tuning = FinetuneOptions(shards=shards, init=str(tmp_path / "sound"))
    assert starting_model(tuning, manifest).specs(manifest) == sound.modalities


@pytest.mark.parametrize("task", ["reconstruction", "linear_probe", "knn"])
def test_evaluation_gives_the_same_numbers(options, silent, task):
    with_column, without = silent
    wanted = options(task=task, mask=MaskSweepOptions(ratios=(0.85,)))
    here = evaluate(replace(wanted, shards=without, absent=("audio",), output=f"{wanted.output}-without"))
    there = evaluate(replace(wanted, shards=with_column, output=f"{wanted.output}-with"))
    assert here.metrics == there.metrics
    assert here.metrics


@pytest.fixture
def settings(model_folder, tmp_path):
    def make(shards: str, **changes) -> FinetuneOptions:
        options = FinetuneOptions(
            shards=shards,
            init=model_folder,
            storage=str(tmp_path / "runs"),
            run=RunOptions(name="tuned"),
            batch=BatchOptions(global_size=12),
            duration=DurationOptions(steps=6),
            optim=OptimOptions(learning_rate=3e-3),
            checkpoint=CheckpointOptions(every_steps=3),
            interval=IntervalOptions(resamples=50),
            tracking=TrackingOptions(enabled=False),
        )
        return replace(options, **changes)

    return make


def test_fine_tuning_gives_the_same_model_that_still_reads_all(settings, silent, model_folder):
    with_column, without = silent
    all_at_once = BatchOptions(global_size=30)  # another dataset comes in another order: sums differ in their last bits
    there = finetune(settings(with_column, batch=all_at_once, run=RunOptions(name="there")))
    here = finetune(settings(without, batch=all_at_once, absent=("audio",)))
    assert here.losses[:2] == pytest.approx(there.losses[:2], abs=1e-5)
    assert here.losses == pytest.approx(there.losses, rel=1e-2)  # AdamW's first steps magnify them
    card = load_metadata(here.checkpoint)["data"]
    assert [spec["name"] for spec in card["modalities"]] == ["image", "audio"]
    assert card["recipe"] == load_metadata(model_folder)["data"]["recipe"]
    both = example(0, "validation").arrays
    alone, heard = Predictor.load(here.checkpoint).probabilities([{"image": both["image"]}, both])
    assert alone.sum() == pytest.approx(1)
    assert (alone != heard).any()


def test_it_has_to_be_said(settings, options, silent):
    for run in (lambda: finetune(settings(silent[1])), lambda: evaluate(options(shards=silent[1]))):
        with pytest.raises(UserError, match=r"the model reads 'audio', the data has image .*take absent=\[…\]\)"):
            run()
    with pytest.raises(UserError, match=r"absent=\['audio'\] is for init="):
        settings(silent[1], init=None, absent=("audio",))


def test_retrieval_of_what_is_not_there_is_refused_before_it_is_computed(options, silent):
    with pytest.raises(UserError, match=r"needs examples of both 'image' and 'audio', and .*without can have none"):
        evaluate(options(shards=silent[1], absent=("audio",), task="retrieval"))


def test_embedding_on_ray_workers_has_it_too(silent, model_folder):
    from pipeline.evaluate.embed import EmbedRequest
    from pipeline.evaluate.embed_ray import PieceEmbedder
    from pipeline.evaluate.loaded import check_model_fits, load_model

    manifest = Manifest.load(silent[1])
    absent = check_model_fits(load_model(model_folder), manifest, silent[1], ["audio"])
    request = EmbedRequest(silent[1], "validation", 4, 1, specs=(*manifest.modalities, *absent))
    worker = PieceEmbedder(model_folder, "cpu", request, EmbedOptions().batch_size, "unused")
    assert worker.reader.read(np.arange(4)).present["audio"].tolist() == [False] * 4
