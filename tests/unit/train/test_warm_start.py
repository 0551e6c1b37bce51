"""``init``: a run starts from another model's weights, and goes on without their source."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_data import IMAGE, SOUND, write_dataset

from hip_model.export import from_pretrained, load_metadata, save_pretrained, weights_digest
from pipeline.errors import UserError
from pipeline.shards.manifest import Manifest
from pipeline.train.checkpoint import list_checkpoints
from pipeline.train.options import CheckpointOptions, DurationOptions, ModelOptions, PretrainOptions, RunOptions
from pipeline.train.runner import run_pretraining
from pipeline.tune.options import TuneOptions

Make = Callable[..., PretrainOptions]


class KilledError(Exception):
    """Stands for a process that is gone."""


@pytest.fixture
def trained(make_options: Make) -> str:
    """The last checkpoint of a finished run."""
    return str(run_pretraining(make_options(run=RunOptions("first"))).checkpoint)


@pytest.fixture
def other_shards(tmp_path: Path) -> str:
    """Data of the same modalities with other statistics."""
    return write_dataset(tmp_path / "other", train=24, without_sound=tuple(range(12)))


def test_the_weights_and_the_normalisation_are_those_of_the_init(make_options: Make, trained, other_shards):
    unmoved = make_options(
        run=RunOptions("second"), shards=other_shards, init=trained, duration=DurationOptions(steps=0)
    )
    second = run_pretraining(unmoved)
    assert weights_digest(str(second.checkpoint)) == weights_digest(trained)
    there, here = load_metadata(trained)["data"], load_metadata(str(second.checkpoint))["data"]
    assert here["normalisation"] == there["normalisation"]
    own = Manifest.load(other_shards)
    assert here["fingerprint"] == own.fingerprint
    assert own.data_card()["normalisation"] != there["normalisation"]


def test_training_goes_on_from_where_the_init_was(make_options: Make, trained):
    losses = _losses(make_options(run=RunOptions("second"), init=trained))
    fresh = _losses(make_options(run=RunOptions("third")))
    assert losses[1] < fresh[1] - 0.05  # fresh: reconstruction 0


def test_a_killed_run_goes_on_bit_for_bit_though_the_source_is_gone(make_options: Make, trained, tmp_path):
    straight = _losses(make_options(run=RunOptions("straight"), init=trained))
    options = make_options(run=RunOptions("second"), init=trained)
    before = _losses(options, die_at=6)
    shutil.rmtree(tmp_path / "runs" / "first")
    with pytest.raises(UserError, match=r"there is no model.safetensors"):
        run_pretraining(options)
    after = _losses(replace(options, init=str(tmp_path / "runs" / "second" / "init")))
    assert min(after) == 5  # the checkpoint is of step 4
    assert before | after == straight


def test_a_run_killed_before_its_first_checkpoint_starts_again(make_options: Make, trained):
    options = make_options(run=RunOptions("second"), init=trained, checkpoint=CheckpointOptions(every_steps=100))
    before = _losses(options, die_at=3)
    again = _losses(options)
    assert {step: again[step] for step in before} == before


def test_larger_pictures_need_consent_and_then_train(make_options: Make, trained, tmp_path):
    larger = replace(IMAGE, shape=(16, 16), sampling={"height": 16, "width": 16})
    shards = write_dataset(tmp_path / "larger", specs=(larger, SOUND))
    options = make_options(run=RunOptions("second"), shards=shards, init=trained)
    with pytest.raises(UserError, match=r"another resolution than the model in image; resize_positions=true"):
        run_pretraining(options)
    result = run_pretraining(replace(options, resize_positions=True))
    model = from_pretrained(str(result.checkpoint))
    assert model.state_dict()["positions.image.weight"].shape == (256, 16)
    assert _losses(replace(options, resize_positions=True, run=RunOptions("again")))[1] < 0.95


def test_a_dry_run_names_the_init_and_writes_nothing(make_options: Make, trained, tmp_path, capsys):
    run_pretraining(make_options(run=RunOptions("second"), init=trained, dry_run=True))
    assert f"init       {trained}" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "second").exists()


def test_another_geometry_is_refused_naming_both(make_options: Make, trained):
    with pytest.raises(UserError) as refused:
        run_pretraining(make_options(run=RunOptions("second"), init=trained, model=ModelOptions("hip_micro")))
    message = str(refused.value)
    assert "is hip_nano, another model than model=hip_micro" in message
    assert "num_latents: (" in message
    assert "give model=hip_nano" in message
    with pytest.raises(UserError, match=r"PerceiverIO|num_groups"):
        run_pretraining(make_options(run=RunOptions("second"), init=trained, model=ModelOptions("io_mini")))


def test_dropout_may_differ(make_options: Make, trained):
    model = ModelOptions("hip_nano", {"dropout": 0.1})
    result = run_pretraining(make_options(run=RunOptions("second"), init=trained, model=model))
    assert from_pretrained(str(result.checkpoint)).config.dropout == 0.1


@pytest.mark.parametrize("specs", [(IMAGE,), (SOUND, IMAGE)], ids=["one less", "another order"])
def test_other_modalities_are_refused(make_options: Make, trained, tmp_path, specs):
    shards = write_dataset(tmp_path / "other", specs=specs)
    names = ", ".join(spec.name for spec in specs)
    with pytest.raises(UserError, match=rf"knows image, audio, this run reads {names}; the modalities and their order"):
        run_pretraining(make_options(run=RunOptions("second"), shards=shards, init=trained))


def test_another_init_under_the_same_name_is_refused_with_the_way_on(make_options: Make, trained, tmp_path):
    options = make_options(run=RunOptions("second"), init=trained)
    run_pretraining(options)
    earlier = next(folder for folder in list_checkpoints(str(tmp_path / "runs" / "first")) if folder != trained)
    for other in (None, earlier):
        with pytest.raises(UserError, match=r"init: weights \w{16} then, .* now\n.*\(init=.*second/init\)"):
            run_pretraining(replace(options, init=other, duration=DurationOptions(steps=9)))


def test_a_model_that_cannot_be_opened_is_refused(make_options: Make, trained, tmp_path):
    options = make_options(run=RunOptions("second"))
    save_pretrained(from_pretrained(trained), tmp_path / "bare", {})
    with pytest.raises(UserError, match="no data card"):
        run_pretraining(replace(options, init=str(tmp_path / "bare")))
    broken = Path(shutil.copytree(trained, tmp_path / "broken"), "model.safetensors")
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot be opened: .*truncated or corrupt"):
        run_pretraining(replace(options, init=str(tmp_path / "broken")))
    assert not (tmp_path / "runs" / "second" / "checkpoints").exists()


def test_resizing_needs_something_to_resize(make_options: Make):
    with pytest.raises(UserError, match="needs init="):
        make_options(resize_positions=True)


def test_a_search_starts_from_scratch():
    with pytest.raises(UserError, match="leave init=null"):
        TuneOptions("shards", init="first")


def test_the_run_says_what_it_started_from(make_options: Make, trained, tmp_path):
    run_pretraining(make_options(run=RunOptions("second"), init=trained))
    record = json.loads((tmp_path / "runs" / "second" / "run.json").read_text())
    assert record["options"]["init"] == f"weights {weights_digest(trained)}"


def _losses(options: PretrainOptions, die_at: int | None = None) -> dict[int, float]:
    losses: dict[int, float] = {}

    def report(step: int, metrics: Mapping[str, float]) -> bool:
        losses[step] = metrics["loss"]
        if step == die_at:
            raise KilledError
        return False

    torch.manual_seed(1)  # no part of a run
    try:
        run_pretraining(options, report)
    except KilledError:
        assert die_at is not None
    return losses
