"""Options: what is refused, and that the YAML files have exactly the tree of the dataclasses."""

from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from training_data import write_dataset

import conf
from hip_model import available_models
from pipeline.cluster.plan import PlanOptions, PlanSettings
from pipeline.config import load_options
from pipeline.errors import UserError
from pipeline.shards.manifest import Manifest
from pipeline.train.checks import accumulation_steps, check_cluster, check_options
from pipeline.train.options import (
    AugmentOptions,
    BatchOptions,
    DurationOptions,
    EngineOptions,
    MaskOptions,
    ModelOptions,
    OptimOptions,
    PretrainOptions,
    RunOptions,
    ScaleOptions,
    ScheduleOptions,
)
from pipeline.train.plan import plan
from pipeline.train.precision import _product_seconds, slow_bfloat16
from pipeline.train.resume import RUNNING, RunRecord, differing, options_to_dict

CONF = Path(conf.__file__).parent
BASE = PretrainOptions(shards="data", duration=DurationOptions(steps=10))


def with_engine(**values: Any) -> PretrainOptions:
    return replace(BASE, engine=EngineOptions(**values))


def with_graphs(engine: EngineOptions, **values: Any) -> PretrainOptions:
    return replace(BASE, engine=engine, scale=ScaleOptions(1, gpus_per_worker=1), **values)


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@pytest.mark.parametrize(
    "name",
    sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if not path.stem.startswith("finetune")),
)
def test_what_a_named_experiment_says_is_what_runs(name: str) -> None:
    recipe = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    chosen = {key.removeprefix("override /"): value for part in recipe.pop("defaults") for key, value in part.items()}
    options = load_options(PretrainOptions, "pretrain", ["shards=/x", f"experiment={name}"])
    check_options(options)
    assert (options.model.name, options.mask.policy) == (chosen["model"], chosen["mask"])
    found = leaves(asdict(options))
    for key, value in leaves(recipe).items():
        assert found[key] == value, key


@pytest.mark.parametrize(
    ("options", "both_sides"),
    [
        (
            replace(BASE, batch=BatchOptions(10), scale=ScaleOptions(4)),
            ("global_size=10", "workers=4", "global_size=8"),
        ),
        (replace(BASE, batch=BatchOptions(32, 12), scale=ScaleOptions(2)), ("per_worker_size=12", "global_size=24")),
        (replace(BASE, batch=BatchOptions(2), scale=ScaleOptions(4)), ("global_size=2", "workers=4")),
        (with_engine(stage=0, precision="bf16"), ("precision=bf16", "stage")),
        (with_engine(precision="fp16"), ("fp16", "gpus_per_worker=0")),
        (with_engine(kind="torch", offload_optimizer=True), ("torch", "offload_optimizer")),
        (with_engine(stage=0, precision="fp32", offload_optimizer=True), ("offload_optimizer=true", "stage")),
        (replace(with_engine(stage=3), scale=ScaleOptions(0)), ("stage=3", "workers=0")),
        (with_engine(stage=3, compile=True), ("compile=true", "stage=3")),
        (replace(with_engine(stage=3), optim=OptimOptions(ema_decay=0.9)), ("ema_decay", "stage=3")),
        (replace(BASE, optim=OptimOptions(kind="lamb")), ("lamb", "stage=1")),
        (replace(BASE, scale=ScaleOptions(1, gpus_per_worker=0.5)), ("gpus_per_worker=0.5", "whole")),
        (with_engine(cuda_graphs=True), ("cuda_graphs=true", "gpus_per_worker=0")),
        (with_graphs(EngineOptions(cuda_graphs=True, stage=3)), ("cuda_graphs=true", "stage=3")),
        (with_graphs(EngineOptions(cuda_graphs=True, compile=True)), ("cuda_graphs=true", "compile=true")),
        (
            with_graphs(
                EngineOptions(cuda_graphs=True), model=ModelOptions("hip_16", {"activation_checkpointing": "blocks"})
            ),
            ("cuda_graphs=true", "activation_checkpointing=blocks"),
        ),
        (
            with_graphs(EngineOptions(cuda_graphs=True), mask=MaskOptions(policy="tube")),
            ("cuda_graphs=true", "policy=tube"),
        ),
    ],
)
def test_options_that_cannot_work_together_are_refused_naming_both(
    options: PretrainOptions, both_sides: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        check_options(options)
    for side in both_sides:
        assert side in str(caught.value)


def test_the_defaults_pass() -> None:
    check_options(PretrainOptions(shards="data"))
    check_options(with_graphs(EngineOptions(cuda_graphs=True)))
    check_options(replace(BASE, batch=BatchOptions(30), scale=ScaleOptions(workers=4, min_workers=2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DurationOptions(), "exactly one"),
        (lambda: DurationOptions(steps=3, epochs=1), "steps, epochs"),
        (lambda: RunOptions(name="a/b"), "plain folder name"),
        (lambda: EngineOptions(kind="deepsped"), "did you mean 'deepspeed'"),
        (lambda: ScheduleOptions(kind="cosine"), "warmup_cosine"),
        (lambda: ScheduleOptions(kind="step", milestone_shares=(0.5, 700)), "schedule.milestone_shares=700 is out"),
        (lambda: ScheduleOptions(kind="step", milestone_factor=-0.1), "schedule.milestone_factor=-0.1 is out"),
        (lambda: OptimOptions(epsilon=-1e-8), "optim.epsilon=-1e-08 is too small"),
        (lambda: OptimOptions(position_learning_rate_scale=-1), "position_learning_rate_scale=-1 is too small"),
        (lambda: MaskOptions(ratio=1.2), "mask.ratio=1.2"),
        (lambda: ScaleOptions(workers=1, min_workers=2), "min_workers=2"),
        (lambda: PretrainOptions(shards=""), "shards is empty"),
        (lambda: PretrainOptions(shards="x", resume="perhaps"), "resume=perhaps"),
        (lambda: PretrainOptions(shards="x", seed=-1), "seed=-1 is too small"),
        (lambda: AugmentOptions(rand_layers=10**9), "augment.rand_layers=1000000000 is out of range"),
        (lambda: AugmentOptions(audio_gain_decibel=1e30), "augment.audio_gain_decibel=1e[+]30 is out of range"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_more_than_the_cluster_has_is_refused_before_waiting_for_it() -> None:
    options = replace(BASE, scale=ScaleOptions(workers=4, gpus_per_worker=1))
    with pytest.raises(UserError, match="4 GPUs, but the cluster has 2"):
        check_cluster(options.scale, {"CPU": 64, "GPU": 2})
    check_cluster(options.scale, {"CPU": 4, "GPU": 4})


@pytest.mark.parametrize(
    ("duration", "steps"),
    [(DurationOptions(steps=7), 7), (DurationOptions(examples=33), 5), (DurationOptions(epochs=1.5), 10)],
)
def test_a_duration_counts_a_started_batch(duration: DurationOptions, steps: int) -> None:
    assert duration.total_steps(num_examples=48, global_batch_size=8 if duration.epochs is None else 7) in (steps, 11)
    assert duration.total_steps(48, 8) == {7: 7, 5: 5, 10: 9}[steps]


def test_micro_batches_are_as_many_on_every_worker() -> None:
    assert accumulation_steps(64, 8, 4) == 2
    assert accumulation_steps(64, None, 4) == 1
    assert accumulation_steps(10, 2, 3) == 2  # shares of 4, 3 and 3


def tree_of(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: tree_of(hints[f.name]) if is_dataclass(hints[f.name]) else None for f in fields(kind)}


def assert_same_tree(values: dict[str, Any], tree: dict[str, Any], where: str) -> None:
    assert set(values) == set(tree), where
    for key, below in tree.items():
        if below is not None:
            assert_same_tree(values[key], below, f"{where}.{key}")


def test_the_yaml_has_the_tree_of_the_dataclasses_and_their_defaults() -> None:
    values = yaml.safe_load((CONF / "pretrain.yaml").read_text())
    for entry in values.pop("defaults"):
        if entry != "_self_":
            ((group, name),) = entry.items()
            if name is None:  # an optional group that nothing is chosen from
                continue
            values[group] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    assert_same_tree(values, tree_of(PretrainOptions), "pretrain")


@pytest.mark.parametrize("group", ["model", "mask", "optim", "schedule", "engine", "scale"])
def test_every_preset_builds_its_options(group: str) -> None:
    kinds = get_type_hints(PretrainOptions)
    presets = sorted((CONF / group).glob("*.yaml"))
    assert presets
    for preset in presets:
        assert preset.read_text().startswith("# ")
        values = yaml.safe_load(preset.read_text())
        kinds[group](**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def test_every_model_has_a_preset() -> None:
    assert {path.stem for path in (CONF / "model").glob("*.yaml")} >= set(available_models())


def test_graphs_are_refused_where_examples_lack_a_modality(tmp_path: Path) -> None:
    options = replace(with_graphs(EngineOptions(cuda_graphs=True)), storage=str(tmp_path))
    whole = Manifest.load(write_dataset(tmp_path / "whole", train=4))
    assert plan(options, whole).num_examples == 4
    with pytest.raises(UserError, match=r"cuda_graphs=true needs every example to have every modality"):
        plan(options, Manifest.load(write_dataset(tmp_path / "parts", train=4, without_sound=(1,))))


def test_graphs_are_refused_where_parts_of_a_batch_weigh_differently(tmp_path: Path) -> None:
    whole = Manifest.load(write_dataset(tmp_path / "whole", train=4))
    engine, small = EngineOptions(cuda_graphs=True), ModelOptions("hip_nano")
    options = replace(with_graphs(engine, model=small, mask=MaskOptions("modality")), storage=str(tmp_path))
    assert plan(options, whole).accumulation_steps == 1
    in_parts = replace(options, batch=BatchOptions(4, 2))
    with pytest.raises(UserError, match=r"as many hidden tokens where a batch is computed in 2 parts.*policy=modality"):
        plan(in_parts, whole)
    assert plan(replace(in_parts, mask=MaskOptions()), whole).accumulation_steps == 2


@pytest.mark.parametrize(
    ("options", "workers", "stage"),
    [
        (EngineOptions(stage=1, precision="fp32"), 1, 0),
        (EngineOptions(stage=1, precision="fp32"), 2, 1),
        (EngineOptions(stage=1, precision="bf16"), 1, 1),
        (EngineOptions(stage=3, precision="fp32", offload_optimizer=True), 1, 3),
        (EngineOptions("torch", stage=1), 2, 0),
    ],
)
def test_one_float32_worker_needs_no_zero_stage(options: EngineOptions, workers: int, stage: int) -> None:
    assert options.stage_for(workers) == stage


def test_precision_follows_the_device_unless_it_is_named() -> None:
    gpu = ScaleOptions(1, gpus_per_worker=1)
    assert PretrainOptions(shards="data").engine.precision == "fp32"
    assert PretrainOptions(shards="data", scale=gpu).engine.precision == "bf16"
    named = EngineOptions(precision="bf16")
    assert PretrainOptions(shards="data", engine=named).engine.precision == "bf16"
    assert PretrainOptions(shards="data", scale=gpu, engine=EngineOptions(precision="fp32")).engine.precision == "fp32"


def test_a_run_keeps_its_precision_on_another_device() -> None:
    def record(options: PretrainOptions) -> RunRecord:
        return RunRecord("first", RUNNING, options_to_dict(options), "", "", "")

    gpu = ScaleOptions(1, gpus_per_worker=1)
    begun = record(PretrainOptions(shards="data"))
    (difference,) = differing(begun, record(PretrainOptions(shards="data", scale=gpu)))
    assert "engine.precision" in difference
    named = PretrainOptions(shards="data", scale=gpu, engine=EngineOptions(precision="fp32"))
    assert differing(begun, record(named)) == []


def test_a_plan_takes_the_precision_of_the_device_planned_for() -> None:
    assert PlanOptions(shards="data").engine.precision == "bf16"  # on an H200
    assert PlanOptions(shards="data", plan=PlanSettings(device="cpu_core")).engine.precision == "fp32"


def test_emulated_bfloat16_is_told_and_only_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, seconds = torch.device("cpu"), {torch.float32: 1.0, torch.bfloat16: 9.0}
    monkeypatch.setattr("pipeline.train.precision._product_seconds", seconds.__getitem__)
    said = slow_bfloat16(cpu, "bf16")
    assert said is not None
    assert "engine.precision=bf16" in said
    assert "9 times" in said
    assert "engine.precision=fp32" in said
    assert slow_bfloat16(cpu, "fp32") is None
    assert slow_bfloat16(torch.device("cuda"), "bf16") is None
    seconds[torch.bfloat16] = 0.7
    assert slow_bfloat16(cpu, "bf16") is None


def test_products_are_timed_for_real() -> None:
    assert 0 < _product_seconds(torch.float32) < 1
    assert 0 < _product_seconds(torch.bfloat16) < 10
