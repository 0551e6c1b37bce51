"""``modalities``: a run reads some of what its dataset has, in another order, or more than it has."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from training_data import IMAGE, SOUND, write_dataset

from hip_model.export import from_pretrained, load_metadata
from pipeline.errors import UserError
from pipeline.shards.manifest import Manifest
from pipeline.train.build import TrainingData
from pipeline.train.options import BatchOptions, DurationOptions, PretrainOptions, RunOptions, ValidationOptions
from pipeline.train.runner import run_pretraining

Make = Callable[..., PretrainOptions]


def losses_by_step(options: PretrainOptions) -> list[float]:
    found: list[float] = []

    def report(step: int, metrics: Mapping[str, float]) -> bool:
        found.append(metrics["loss"])
        return False

    run_pretraining(options, report)
    return found


@pytest.mark.parametrize("names", [("image",), ("audio",), ("audio", "image")])
def test_the_model_has_what_was_chosen_in_that_order(make_options: Make, shards: str, names) -> None:
    result = run_pretraining(make_options(modalities=names, validation=ValidationOptions(every_steps=4, examples=4)))
    assert [modality.name for modality in from_pretrained(str(result.checkpoint)).modalities] == list(names)
    card = load_metadata(str(result.checkpoint))["data"]
    assert [spec["name"] for spec in card["modalities"]] == list(names)
    assert set(card["normalisation"]) == set(names)
    assert card["fingerprint"] == Manifest.load(shards).fingerprint
    assert {key for key in result.metrics if key.startswith("loss/")} == {f"loss/{name}" for name in names}


def test_the_order_of_modalities_changes_no_example_and_tokens_are_counted_as_read(make_options: Make, shards) -> None:
    manifest = Manifest.load(shards)
    examples = []
    for specs in ((IMAGE, SOUND), (SOUND, IMAGE), (SOUND,)):
        data = TrainingData.open(make_options(), manifest.read_as(specs), 0, 1)
        with data.loader(0) as loader:
            batch = next(loader)
        assert list(batch.inputs) == [spec.name for spec in specs]
        examples.append((batch.example_ids.tolist(), batch.inputs["audio"].numpy().tobytes()))
    assert examples[1:] == examples[:1] * 2
    chosen = run_pretraining(make_options(modalities=("audio",)))
    assert chosen.metrics["tokens_per_second"] == pytest.approx(64 * chosen.metrics["examples_per_second"])


def test_examples_with_nothing_to_read_teach_nothing_however_the_batch_is_cut(make_options: Make, tmp_path) -> None:
    lacking = write_dataset(tmp_path / "lacking", train=16, validation=4, without_sound=tuple(range(0, 16, 2)))
    options = make_options(shards=lacking, modalities=("audio",), duration=DurationOptions(steps=4))
    first, *others = (
        losses_by_step(replace(options, batch=BatchOptions(8, size), run=RunOptions(f"parts of {size}")))
        for size in (1, 2, 8)
    )
    assert first[0] == pytest.approx(1, abs=0.1), "the mean of those that have sound"
    assert others == [pytest.approx(first, rel=1e-5)] * 2


def test_a_model_of_two_goes_on_with_data_of_one(make_options: Make, tmp_path) -> None:
    first = str(run_pretraining(make_options(run=RunOptions("first"))).checkpoint)
    silent = write_dataset(tmp_path / "silent", train=16, validation=4, specs=(IMAGE,))
    options = make_options(shards=silent, init=first, run=RunOptions("second"))
    with pytest.raises(UserError, match=r"this run reads image; .*modalities=\[image,audio\] reads these"):
        run_pretraining(options)
    validation = ValidationOptions(every_steps=8, examples=4)
    result = run_pretraining(replace(options, modalities=("image", "audio"), validation=validation))
    there, here = load_metadata(first)["data"], load_metadata(str(result.checkpoint))["data"]
    assert here["modalities"] == there["modalities"]
    assert here["normalisation"] == there["normalisation"]
    assert here["fingerprint"] == Manifest.load(silent).fingerprint
    assert result.metrics["loss"] < 0.9, "a fresh model starts at 1"
    assert "loss/audio" not in result.metrics


def test_the_plan_says_how_many_examples_have_it(make_options: Make, tmp_path, capsys) -> None:
    lacking = write_dataset(tmp_path / "lacking", train=16, validation=0, without_sound=(1, 2, 3))
    run_pretraining(make_options(shards=lacking, dry_run=True))
    assert "16 training examples, 4.0 epochs\n           of which 13 have audio\n" in capsys.readouterr().out


def test_a_run_goes_on_and_another_choice_is_another_run(make_options: Make) -> None:
    options = make_options(modalities=("image",))
    run_pretraining(replace(options, duration=DurationOptions(steps=4)))
    assert run_pretraining(options).examples_consumed == 64
    with pytest.raises(UserError, match=r"modalities"):
        run_pretraining(replace(options, modalities=("image", "audio"), duration=DurationOptions(steps=9)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("image", "audoi"), r"there is no 'audoi' in .* \(what it lacks .*did you mean 'audio'"),
        (("image", "image"), r"must name one or more, each once; null reads all"),
        ((), r"must name one or more"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(make_options: Make, names, message) -> None:
    with pytest.raises(UserError, match=message):
        run_pretraining(make_options(modalities=names))


def test_a_dataset_with_none_of_them_is_refused(make_options: Make, tmp_path) -> None:
    mute = write_dataset(tmp_path / "mute", train=8, validation=2, without_sound=tuple(range(8)))
    with pytest.raises(UserError, match=r"no training example in .* has any of them, only image"):
        run_pretraining(make_options(shards=mute, modalities=("audio",)))
    first = str(run_pretraining(make_options(run=RunOptions("first"), duration=DurationOptions(steps=0))).checkpoint)
    silent = write_dataset(tmp_path / "silent", train=8, validation=0, specs=(IMAGE,))
    with pytest.raises(UserError, match=r"has any of them, only image"):
        run_pretraining(make_options(shards=silent, init=first, modalities=("audio",)))
