"""Two workers, real DeepSpeed: every engine and stage computes the same, and takes over any other's checkpoint."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from training_data import IMAGE, POINTS, SOUND, write_dataset
from two_ranks import run_on_two_ranks

from pipeline.preprocess.combine import CombineOptions, run_combine
from pipeline.tracking.options import TrackingOptions
from pipeline.train.checkpoint import latest_checkpoint, read_state
from pipeline.train.options import (
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    EngineOptions,
    FigureOptions,
    MaskOptions,
    MetricsOptions,
    ModelOptions,
    OptimOptions,
    PretrainOptions,
    RunOptions,
    ScaleOptions,
    ScheduleOptions,
    ValidationOptions,
)
from pipeline.train.runner import run_pretraining

pytestmark = pytest.mark.integration

STEPS = 9


def make_options(
    folder: Path, name: str, kind: str = "deepspeed", stage: int = 1, steps: int = STEPS
) -> PretrainOptions:
    return PretrainOptions(
        shards=str(folder / "shards"),
        storage=str(folder / "runs"),
        run=RunOptions(name),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8, 2),
        duration=DurationOptions(steps=steps),
        optim=OptimOptions(learning_rate=3e-3),
        # Independent of the duration, so that a run in three parts follows the same rates as a whole one.
        schedule=ScheduleOptions("constant", warmup_share=0),
        engine=EngineOptions(kind=kind, stage=stage, precision="fp32"),
        scale=ScaleOptions(workers=2),
        checkpoint=CheckpointOptions(every_steps=3),
        validation=ValidationOptions(every_steps=0),
        metrics=MetricsOptions(every_steps=1),
        figures=FigureOptions(every_steps=0),
        tracking=TrackingOptions(enabled=False),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pretrain")
    write_dataset(place / "shards", train=24, validation=8)
    write_dataset(place / "poisoned", train=24, validation=0, specs=(IMAGE, POINTS), poisoned=(5,))
    members = [write_dataset(place / f"only_{spec.name}", 24, 0, (spec,)) for spec in (IMAGE, SOUND)]
    run_combine(CombineOptions(tuple(members), str(place / "combined"), (1, 2)))
    return place


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, dict[int, float]]:
    """All two-worker runs of this module, in one pair of processes."""
    trained = str(folder / "runs" / "torch" / "checkpoints" / f"step_{STEPS:08d}")
    several = {
        "torch": make_options(folder, "torch", "torch", 0),
        "zero0": make_options(folder, "zero0", stage=0),
        "zero1": make_options(folder, "zero1", stage=1),
        "warm_torch": replace(make_options(folder, "warm_torch", "torch", 0), init=trained),
        "warm_zero1": replace(make_options(folder, "warm_zero1", stage=1), init=trained),
        "again_a": make_options(folder, "again", stage=1, steps=4),
        "again_b": make_options(folder, "again", stage=1),
        # One run that changes its stage.
        "moves_a": make_options(folder, "moves", stage=1, steps=3),
        "moves_b": make_options(folder, "moves", stage=2, steps=6),
        # Examples differ in how many tokens are scored; two micro-batches on each worker.
        "hidden": replace(make_options(folder, "hidden"), mask=MaskOptions("modality")),
        "poisoned": replace(make_options(folder, "poisoned", stage=1), shards=str(folder / "poisoned")),
        # Parts of a batch have pictures alone, or sound alone.
        "combined": replace(make_options(folder, "combined"), shards=str(folder / "combined")),
        # Last: DeepSpeed replaces torch's linear function for the rest of the process.
        "zero3": replace(
            make_options(folder, "zero3", stage=3),
            validation=ValidationOptions(every_steps=4, examples=5),
            figures=FigureOptions(every_steps=6, examples=2),
        ),
        "combined3": replace(make_options(folder, "combined3", stage=3), shards=str(folder / "combined")),
        "warm_zero3": replace(make_options(folder, "warm_zero3", stage=3), init=trained),
        "again3_a": make_options(folder, "again3", stage=3, steps=4),
        "again3_b": make_options(folder, "again3", stage=3),
    }
    return dict(zip(several, run_on_two_ranks(folder / "ranks", list(several.values())), strict=True))


def test_all_engines_follow_the_same_loss_curve(runs: dict[str, dict[int, float]]) -> None:
    assert len(runs["torch"]) == STEPS
    assert runs["torch"][STEPS] < 0.95 * runs["torch"][1]
    for name in ("zero0", "zero1", "zero3"):
        assert runs[name] == pytest.approx(runs["torch"], rel=1e-6), name


def test_all_engines_start_from_the_same_weights(runs: dict[str, dict[int, float]]) -> None:
    assert runs["warm_torch"][1] < 0.97 * runs["torch"][1]
    for name in ("warm_zero1", "warm_zero3"):
        assert runs[name] == pytest.approx(runs["warm_torch"], rel=1e-6), name


def losses_alone(options: PretrainOptions) -> dict[int, float]:
    """The losses of one worker in this process, by step."""
    losses: dict[int, float] = {}

    def report(step: int, metrics: object) -> bool:
        losses[step] = dict(metrics)["loss"]  # type: ignore[call-overload]
        return False

    run_pretraining(replace(options, scale=ScaleOptions(workers=0)), report)
    return losses


def test_two_workers_compute_what_one_does(folder: Path, runs: dict[str, dict[int, float]]) -> None:
    alone = losses_alone(make_options(folder, "alone", "torch", 0))
    assert runs["torch"] == pytest.approx(alone, rel=1e-5)
    # One worker shares nothing, whatever the stage that is asked for.
    sharded = losses_alone(make_options(folder, "alone_zero", "deepspeed", 2))
    assert sharded == pytest.approx(alone, rel=1e-6)
    # A second run of this process: DeepSpeed must not go on with the first one's process groups.
    assert losses_alone(make_options(folder, "alone_zero_again", "deepspeed", 2)) == sharded


def test_workers_agree_where_a_part_lacks_a_modality(folder: Path, runs: dict[str, dict[int, float]]) -> None:
    whole = replace(make_options(folder, "combined_alone", "torch", 0), shards=str(folder / "combined"))
    alone = losses_alone(replace(whole, batch=BatchOptions(8)))
    for name in ("combined", "combined3"):
        assert runs[name] == pytest.approx(alone, rel=1e-5), name


def test_workers_agree_where_examples_differ_in_how_many_tokens_are_scored(
    folder: Path, runs: dict[str, dict[int, float]]
) -> None:
    whole = replace(make_options(folder, "hidden_alone", "torch", 0), mask=MaskOptions("modality"))
    alone = losses_alone(replace(whole, batch=BatchOptions(8)))
    assert runs["hidden"] == pytest.approx(alone, rel=1e-5)


def test_the_same_workers_resume_bit_for_bit(runs: dict[str, dict[int, float]]) -> None:
    assert min(runs["again_b"]) == 5
    assert {**runs["again_a"], **runs["again_b"]} == runs["zero1"]
    assert (min(runs["again3_b"]), {**runs["again3_a"], **runs["again3_b"]}) == (5, runs["zero3"])


def test_a_run_moves_between_stages_and_numbers_of_workers(folder: Path, runs: dict[str, dict[int, float]]) -> None:
    last = losses_alone(make_options(folder, "moves", "torch", 0))
    assert (min(runs["moves_b"]), min(last)) == (4, 7)
    assert {**runs["moves_a"], **runs["moves_b"], **last} == pytest.approx(runs["zero1"], rel=1e-5)


def test_a_nan_on_one_worker_is_skipped_by_all(folder: Path, runs: dict[str, dict[int, float]]) -> None:
    checkpoint = latest_checkpoint(str(folder / "runs" / "poisoned"))
    assert checkpoint is not None
    state = read_state(checkpoint)
    assert state.step == STEPS
    assert state.hooks["guards"]["counts"]["non_finite_loss"] == 3  # three epochs
    assert state.optimizer_steps == STEPS - 3
    assert all(len(set(event["example_ids"])) == 8 for event in state.hooks["guards"]["events"])
    finite = [loss for loss in runs["poisoned"].values() if math.isfinite(loss)]
    assert len(finite) == STEPS - 3
    assert finite[-1] < finite[0]
