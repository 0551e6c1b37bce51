"""Whole runs in this process: learning, resuming, refusing, guarding."""

import json
import math
import os
import resource
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load
from training_data import IMAGE, POINTS, write_dataset

from hip_model.export import from_pretrained, load_metadata
from pipeline.errors import DataError, InfrastructureError, TrainingDiverged, UserError
from pipeline.evaluate.loaded import load_model
from pipeline.registry.resolve import resolve_model
from pipeline.shards.reader import Batch
from pipeline.storage import join, read_bytes
from pipeline.tracking.options import TrackingOptions
from pipeline.train.checkpoint import latest_checkpoint, list_checkpoints, read_state
from pipeline.train.loop import Trainer
from pipeline.train.options import (
    AugmentOptions,
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    EngineOptions,
    GuardOptions,
    MaskOptions,
    ModelOptions,
    OptimOptions,
    PretrainOptions,
    RunOptions,
    ScheduleOptions,
    ValidationOptions,
)
from pipeline.train.runner import run_pretraining
from pipeline.train.validation import Validation

Make = Callable[..., PretrainOptions]


class Recorder:
    """Keeps the loss of each step; ends the run when it was asked to."""

    def __init__(self, end_at: int | None = None) -> None:
        self.losses: dict[int, float] = {}
        self.validated: dict[int, float] = {}
        self.end_at = end_at

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        self.losses[step] = metrics.get("loss", math.nan)
        self.validated[step] = metrics.get("validation/loss", math.nan)
        return step == self.end_at


class KilledError(Exception):
    """Stands for a process that is gone."""


def killed_at(step_to_die: int, recorder: Recorder) -> Callable[[int, Mapping[str, float]], bool]:
    def report(step: int, metrics: Mapping[str, float]) -> bool:
        recorder(step, metrics)
        if step == step_to_die:
            raise KilledError
        return False

    return report


@pytest.fixture
def straight(make_options: Make, tmp_path: Path) -> dict[int, float]:
    """The losses of the undisturbed run."""
    recorder = Recorder()
    run_pretraining(make_options(storage=str(tmp_path / "straight")), recorder)
    return recorder.losses


def test_a_run_learns_and_leaves_a_loadable_model_and_a_true_record(make_options: Make) -> None:
    recorder = Recorder()
    options = make_options(duration=DurationOptions(epochs=5), validation=ValidationOptions(every_steps=10, examples=8))
    result = run_pretraining(options, recorder)
    assert recorder.losses[30] < 0.8 * recorder.losses[1]
    assert result.examples_consumed == 240
    assert result.metrics["validation/loss"] < recorder.losses[1]
    assert recorder.validated[28] < recorder.validated[14], "a search may judge by held-out examples on the way"
    assert {"psnr_db/image", "psnr_db/audio", "gradient_norm", "update_ratio", "data_wait_share"} <= set(result.metrics)
    assert result.checkpoint is not None
    model = from_pretrained(result.checkpoint)
    assert [modality.name for modality in model.modalities] == ["image", "audio"]
    metadata = load_metadata(result.checkpoint)
    assert metadata["data"]["normalisation"]["image"]["std"][0] > 0
    assert metadata["run_name"] == "run"
    record = json.loads((Path(result.run_folder) / "run.json").read_text())
    assert (record["status"], record["step"], record["attempts"]) == ("finished", 30, 1)


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_killed_run_goes_on_bit_for_bit(make_options: Make, straight: dict[int, float], step: int) -> None:
    before, after = Recorder(), Recorder()
    with pytest.raises(KilledError):
        run_pretraining(make_options(), killed_at(step, before))
    run_pretraining(make_options(resume="must"), after)
    assert min(after.losses) == step // 4 * 4 + (step % 4 != 0 or step < 4) if step != 4 else 1
    assert {**before.losses, **after.losses} == straight


@pytest.mark.parametrize("remote", [False, True])
def test_dropout_and_the_moving_average_also_resume_bit_for_bit(
    make_options: Make, tmp_path: Path, remote: bool
) -> None:
    changes: dict[str, Any] = {"optim": OptimOptions(learning_rate=3e-3, ema_decay=0.8)}
    changes["model"] = replace(make_options().model, overrides={"dropout": 0.2})
    first, second, third = Recorder(), Recorder(), Recorder()
    whole = run_pretraining(make_options(storage=str(tmp_path / "whole"), **changes), first)
    if remote:
        changes["storage"] = f"memory://{uuid.uuid4().hex}"
    with pytest.raises(KilledError):
        run_pretraining(make_options(**changes), killed_at(6, second))
    parts = run_pretraining(make_options(**changes), third)
    assert {**second.losses, **third.losses} == first.losses
    folders = [join(str(whole.checkpoint), "average"), join(str(parts.checkpoint), "average"), str(parts.checkpoint)]
    expected, average, last = (load(read_bytes(join(folder, "model.safetensors"))) for folder in folders)
    assert all(torch.equal(average[name], value) for name, value in expected.items())
    assert any(not torch.equal(average[name], value) for name, value in last.items())
    model = resolve_model("run/average", make_options(**changes).storage)
    assert load_model(model, "cpu").name == "run/step_00000008/average"


def test_accumulation_changes_nothing_but_the_order_of_sums(make_options: Make, straight: dict[int, float]) -> None:
    recorder = Recorder()
    run_pretraining(make_options(batch=BatchOptions(8, 2)), recorder)
    assert recorder.losses == pytest.approx(straight, rel=2e-5)


def test_missing_modalities_weigh_the_same_however_the_batch_is_cut(make_options: Make, tmp_path: Path) -> None:
    shards = write_dataset(tmp_path / "gaps", train=16, validation=0, without_sound=tuple(range(0, 16, 3)))
    losses = []
    for size in (8, 2, 1):
        recorder = Recorder()
        options = make_options(shards=shards, run=RunOptions(f"cut_{size}"), batch=BatchOptions(8, size))
        run_pretraining(options, recorder)
        losses.append(recorder.losses)
    assert losses[1] == pytest.approx(losses[0], rel=2e-5)
    assert losses[2] == pytest.approx(losses[0], rel=2e-5)


def test_report_ends_a_run_early_and_in_order(make_options: Make) -> None:
    result = run_pretraining(make_options(), Recorder(end_at=3))
    assert result.checkpoint is not None
    assert read_state(result.checkpoint).step in (3, 4)


def test_a_run_is_trained_once_at_a_time(make_options: Make, straight: dict[int, float]) -> None:
    recorder, refusals = Recorder(), []

    def report(step: int, metrics: Mapping[str, float]) -> bool:
        if step == 3:
            with pytest.raises(
                UserError, match=rf"being trained by another process \(process {os.getpid()} on"
            ) as told:
                run_pretraining(make_options())
            refusals.append(told)
            assert run_pretraining(make_options(dry_run=True)).status == "planned"
        return recorder(step, metrics)

    result = run_pretraining(make_options(), report)
    assert len(refusals) == 1
    assert recorder.losses == straight
    assert not (Path(result.run_folder) / ".run.lock").exists()


def test_the_same_name_is_the_same_run_or_refused_with_the_difference(make_options: Make) -> None:
    run_pretraining(make_options())
    with pytest.raises(UserError, match="resume=never"):
        run_pretraining(make_options(resume="never"))
    with pytest.raises(UserError, match=r"optim\.learning_rate: 0\.003 then, 0\.1 now"):
        run_pretraining(make_options(optim=OptimOptions(learning_rate=0.1)))
    again = run_pretraining(make_options())
    assert again.metrics["loss"] > 0  # finished already: told from the record, nothing is run
    longer = run_pretraining(make_options(duration=DurationOptions(steps=10)))
    assert longer.examples_consumed == 80
    with pytest.raises(UserError, match="resume=must"):
        run_pretraining(make_options(resume="must", run=RunOptions("another")))


def test_other_data_under_the_same_name_is_refused(make_options: Make, tmp_path: Path) -> None:
    run_pretraining(make_options())
    other = write_dataset(tmp_path / "other", train=20)
    with pytest.raises(UserError, match="dataset fingerprint"):
        run_pretraining(make_options(shards=other))


def test_a_run_without_a_name_is_found_again_by_what_it_computes(make_options: Make) -> None:
    first = run_pretraining(make_options(run=RunOptions()))
    longer = run_pretraining(make_options(run=RunOptions(), duration=DurationOptions(steps=9)))
    other = run_pretraining(make_options(run=RunOptions(), seed=1))
    assert first.run_name == longer.run_name != other.run_name


def test_a_nan_in_the_data_is_skipped_named_and_survived(make_options: Make, tmp_path: Path) -> None:
    shards = write_dataset(tmp_path / "poison", train=48, validation=0, specs=(IMAGE, POINTS), poisoned=(5, 17))
    recorder = Recorder()
    options = make_options(shards=shards, duration=DurationOptions(steps=12), checkpoint=CheckpointOptions(3))
    result = run_pretraining(options, recorder)
    assert result.checkpoint is not None
    guards = read_state(result.checkpoint).hooks["guards"]
    assert guards["counts"]["non_finite_loss"] >= 2  # each epoch of 6 steps meets both examples
    assert all(len(event["example_ids"]) == 8 for event in guards["events"])
    assert math.isfinite(recorder.losses[12])
    assert guards["rollbacks"] == 0


def test_a_run_that_cannot_learn_rolls_back_and_then_gives_up_with_a_diagnosis(
    make_options: Make, tmp_path: Path
) -> None:
    shards = write_dataset(tmp_path / "bad", train=16, validation=0, specs=(IMAGE, POINTS), poisoned=tuple(range(16)))
    options = make_options(
        shards=shards,
        duration=DurationOptions(steps=40),
        guards=GuardOptions(consecutive_bad_steps=3, max_rollbacks=2),
    )
    with pytest.raises(TrainingDiverged, match="after 2 roll-backs") as caught:
        run_pretraining(options)
    assert caught.value.exit_code == 4
    record = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
    assert record["status"] == "diverged"
    last = latest_checkpoint(str(tmp_path / "runs" / "run"))
    assert last is not None
    assert read_state(last).hooks["guards"]["rollbacks"] == 2
    assert read_state(last).examples_consumed == 6 * 8  # past the examples of both windows


def test_checkpoints_are_kept_by_count_and_by_interval(make_options: Make, tmp_path: Path) -> None:
    options = make_options(
        duration=DurationOptions(steps=12), checkpoint=CheckpointOptions(every_steps=2, keep_last=2, keep_every_steps=6)
    )
    run_pretraining(options)
    names = [Path(folder).name for folder in list_checkpoints(str(tmp_path / "runs" / "run"))]
    assert names == ["step_00000000", "step_00000006", "step_00000010", "step_00000012"]


def test_a_dry_run_prints_the_plan_and_starts_nothing(
    make_options: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_pretraining(make_options(dry_run=True))
    assert result.status == "planned"
    shown = capsys.readouterr().out
    assert "120,292 parameters" in shown
    assert "8 of 8 examples" in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "hip_nanu"}}, "did you mean 'hip_nano'"),
        ({"mask": {"policy": "tube"}}, "does not fit"),
        ({"shards": "/nowhere/at/all"}, "not a finished token dataset"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    make_options: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    options = make_options()
    changes = {
        key: replace(getattr(options, key), **value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        run_pretraining(replace(options, **changes))
    assert not (tmp_path / "runs").exists()


def test_a_damaged_shard_ends_the_run_with_a_data_error(make_options: Make, tmp_path: Path) -> None:
    shards = write_dataset(tmp_path / "damaged", train=16, validation=0)
    shard = Path(shards) / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(bytes(content))
    with pytest.raises(DataError) as caught:
        run_pretraining(make_options(shards=shards))
    assert caught.value.exit_code == 3
    assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["status"] == "failed"


def test_training_goes_on_without_two_checkpoints_but_not_without_three(make_options: Make, tmp_path: Path) -> None:
    recorder = Recorder()
    place = tmp_path / "runs" / "run" / "checkpoints"

    def report(step: int, metrics: Mapping[str, float]) -> bool:
        if step == 3:  # from now on nothing can be written there
            shutil.rmtree(place)
            place.write_text("in the way")
        return recorder(step, metrics)

    options = make_options(checkpoint=CheckpointOptions(every_steps=1), duration=DurationOptions(steps=20))
    with pytest.raises(InfrastructureError, match="step_00000005 was not saved") as caught:
        run_pretraining(options, report)
    assert caught.value.exit_code == 5
    assert max(recorder.losses) == 6  # a save tells how it went when the next one begins


def test_a_batch_that_does_not_fit_names_one_that_may(make_options: Make, tmp_path: Path) -> None:
    run_pretraining(make_options(run=RunOptions("first"), duration=DurationOptions(steps=1)))  # all is imported by now
    options = make_options(batch=BatchOptions(4096, 4096))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limits[1]))
    try:
        with pytest.raises(UserError, match=r"batch\.per_worker_size=2048 .*activation_checkpointing=true"):
            run_pretraining(options)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["status"] == "failed"


AUGMENT = AugmentOptions(crop_min_area=0.3, flip=0.5, rand_layers=1, audio_shift=0.5, audio_gain_decibel=3)


def test_augmentation_is_a_function_of_the_example_and_its_epoch(make_options: Make, tmp_path: Path) -> None:
    """However a batch is cut, and wherever a run was stopped, examples are seen as they would have been."""
    plain, whole, cut, resumed = Recorder(), Recorder(), Recorder(), Recorder()
    run_pretraining(make_options(storage=str(tmp_path / "plain")), plain)
    run_pretraining(make_options(storage=str(tmp_path / "whole"), augment=AUGMENT), whole)
    assert all(whole.losses[step] != pytest.approx(plain.losses[step], rel=1e-4) for step in plain.losses)
    batch = BatchOptions(8, 2)
    run_pretraining(make_options(storage=str(tmp_path / "cut"), augment=AUGMENT, batch=batch), cut)
    assert cut.losses == pytest.approx(whole.losses, rel=1e-5)
    options = make_options(storage=str(tmp_path / "killed"), augment=AUGMENT)
    with pytest.raises(KilledError):
        run_pretraining(options, killed_at(6, Recorder()))
    run_pretraining(options, resumed)
    assert resumed.losses == {step: whole.losses[step] for step in resumed.losses}
    assert min(resumed.losses) == 5


def test_held_out_examples_are_not_augmented(make_options: Make) -> None:
    def validated(name: str, augment: AugmentOptions) -> float:
        return run_pretraining(
            make_options(
                run=RunOptions(name),
                augment=augment,
                optim=OptimOptions(learning_rate=0.0),
                validation=ValidationOptions(every_steps=4, examples=4),
                duration=DurationOptions(steps=2),
            )
        ).metrics["validation/loss"]

    assert validated("augmented", AUGMENT) == validated("plain", AugmentOptions())


def test_augmentation_of_what_is_not_there_is_told(make_options: Make, caplog: pytest.LogCaptureFixture) -> None:
    run_pretraining(make_options(augment=AugmentOptions(points_jitter=0.1), duration=DurationOptions(steps=1)))
    assert (
        "augment.points_jitter=0.1 (it acts on points) does nothing here: the model reads image, audio" in caplog.text
    )


def test_a_modality_of_which_nothing_is_hidden_has_no_loss(make_options: Make) -> None:
    seen: dict[str, float] = {}

    def report(step: int, metrics: Mapping[str, float]) -> bool:
        seen.update(metrics)
        return False

    mask, validation = MaskOptions(per_modality={"audio": 0.0}), ValidationOptions(every_steps=2, examples=8)
    run_pretraining(make_options(mask=mask, validation=validation, duration=DurationOptions(steps=4)), report)
    assert seen["validation/loss"] == pytest.approx(seen["validation/loss/image"])
    assert seen["loss"] == pytest.approx(seen["loss/image"])
    assert not [name for name in seen if name.endswith("/audio")]


@pytest.mark.parametrize("policy", ["group_uniform", "modality"])
def test_all_metrics_of_a_batch_are_the_same_however_it_is_cut(make_options: Make, policy: str) -> None:
    def metrics_of(per_worker_size: int) -> dict[str, float]:
        name, seen = f"of_{per_worker_size}", {}

        def report(step: int, metrics: Mapping[str, float]) -> bool:
            seen.update(metrics)
            return step == 2

        batch, validation = BatchOptions(8, per_worker_size), ValidationOptions(every_steps=2, examples=8)
        options = make_options(run=RunOptions(name), batch=batch, mask=MaskOptions(policy), validation=validation)
        run_pretraining(options, report)
        return {key: value for key, value in seen.items() if "loss/" in key or "psnr_db/" in key}

    whole = metrics_of(8)
    assert {"psnr_db/image", "validation/psnr_db/image"} <= set(whole)
    assert metrics_of(2) == pytest.approx(whole, rel=1e-5)


def test_a_password_in_a_uri_is_nowhere_in_the_run_folder(make_options: Make, tmp_path: Path) -> None:
    tracking = TrackingOptions(uri="http://somebody:hunter2@127.0.0.1:9")  # nobody answers there
    run_pretraining(make_options(tracking=tracking))
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"run.json", "config.json", "trainer_state.json"} <= {path.name for path in files}
    assert [path for path in files if b"hunter2" in path.read_bytes()] == []


def test_validation_takes_examples_from_all_over_the_split(make_options: Make, tmp_path: Path) -> None:
    """The first of many windows would all be of one recording."""
    shards, seen = write_dataset(tmp_path / "many", train=16, validation=40), []
    original = Validation._batch

    def spy(self: Validation, trainer: Trainer, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        seen.extend(batch.sources)
        return original(self, trainer, module, batch)

    with patch.object(Validation, "_batch", spy):
        validation = ValidationOptions(every_steps=2, examples=4)
        run_pretraining(make_options(shards=shards, duration=DurationOptions(steps=2), validation=validation))
    assert seen == [f"validation/{index}.mp4" for index in (0, 13, 26, 39)]


def test_runs_that_were_masked_differently_are_validated_alike(make_options: Make) -> None:
    def validated(name: str, ratio: float, mask: MaskOptions | None) -> float:
        return run_pretraining(
            make_options(
                run=RunOptions(name),
                optim=OptimOptions(learning_rate=0.0),
                mask=MaskOptions(ratio=ratio),
                validation=ValidationOptions(every_steps=4, examples=4, mask=mask),
            )
        ).metrics["validation/loss"]

    usual = validated("usual", 0.85, None)
    assert validated("held", 0.5, MaskOptions(ratio=0.85)) == usual
    assert validated("other", 0.5, None) != usual
    with pytest.raises(UserError, match="mask policy 'tube' needs"):
        validated("tube", 0.5, MaskOptions(policy="tube"))


_SMALL_IO = {"num_latents": 16, "num_channels": 32, "num_self_attention_layers": 1, "num_self_attention_heads": 2}


@pytest.mark.parametrize("model", [ModelOptions("perceiver_tiny"), ModelOptions("io_mini", _SMALL_IO)])
@pytest.mark.parametrize("option", ["activation_checkpointing", "compile"])
def test_perceivers_recompute_and_compile_like_hip(make_options: Make, model: ModelOptions, option: str) -> None:
    plain, changed = Recorder(), Recorder()
    options = make_options(model=model, duration=DurationOptions(steps=2))
    run_pretraining(options, plain)
    engine = replace(options.engine, **{option: True})
    with torch.compiler.set_stance("force_eager"):  # else half a minute of the compiler's time, the same path before it
        run_pretraining(replace(options, engine=engine, run=RunOptions(option)), changed)
    assert changed.losses == pytest.approx(plain.losses, rel=1e-5)


@pytest.mark.parametrize("kind", ["constant_cosine", "step"])
def test_lamb_and_other_schedules_train(make_options: Make, kind: str) -> None:
    recorder = Recorder()
    options = make_options(
        optim=OptimOptions(kind="lamb", learning_rate=0.02),
        schedule=ScheduleOptions(kind=kind),
        engine=EngineOptions(kind="torch", precision="bf16", activation_checkpointing=True),
        duration=DurationOptions(steps=16),
    )
    run_pretraining(options, recorder)
    assert recorder.losses[16] < recorder.losses[1]
