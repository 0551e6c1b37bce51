"""The paper's comparisons: derived datasets are exact, tables say what was found, and a tiny study runs to its end."""

from pathlib import Path

import numpy as np
import pytest
from training_data import write_dataset

from hip_model.ordering import inverse, token_order
from hip_model.variants import build_model
from pipeline.errors import UserError
from pipeline.evaluate.derive import Derivation, derive_shards
from pipeline.evaluate.paper import ArmResult, pretraining_of, render_table, run_study, t_interval, verdict
from pipeline.evaluate.paper_options import ExperimentOptions
from pipeline.evaluate.studies import STUDIES, Claim
from pipeline.evaluate.throughput import measure_throughput, render_throughput
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.train.checks import check_options
from pipeline.train.options import ModelOptions, PretrainOptions


def test_shuffled_copy_holds_the_same_pixels_in_the_stated_order(shards, tmp_path):
    target = derive_shards(shards, str(tmp_path / "shuffled"), Derivation(order="shuffled"))
    before, after = (ShardReader(folder, split="train").read(np.arange(5)) for folder in (shards, target))
    order = token_order("shuffled", (8, 8))
    np.testing.assert_array_equal(after.arrays["image"], before.arrays["image"][:, order])
    np.testing.assert_array_equal(after.arrays["image"][:, inverse(order)], before.arrays["image"])
    assert before.labels == after.labels
    np.testing.assert_array_equal(before.example_ids, after.example_ids)
    assert [spec.token_order for spec in Manifest.load(target).modalities] == ["shuffled", "shuffled"]
    assert Manifest.load(target).lineage["derived_from"] == Manifest.load(shards).fingerprint
    stamp = (Path(target) / "manifest.json").stat().st_mtime_ns
    derive_shards(shards, target, Derivation(order="shuffled"))
    assert (Path(target) / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("study", "left", "missing"),
    [("modalities", "audio", "video or image"), ("modalities", "image", "audio"), ("modelnet", "audio", "points")],
)
def test_data_on_which_the_arms_would_be_the_same_is_refused(shards, tmp_path, study, left, missing):
    spec = next(spec for spec in Manifest.load(shards).modalities if spec.name == left)
    alone = write_dataset(tmp_path / left, train=4, validation=0, specs=(spec,))
    with pytest.raises(UserError, match=f"study={study} needs {missing}, but .* has only {left}"):
        run_study(ExperimentOptions(study=study, shards=alone, storage=str(tmp_path)))


def test_every_model_of_every_study_can_be_built():
    from hip_model.modality import Modality

    for study in STUDIES.values():
        for scale in study.scales.values():
            for arm in study.arms:
                name, overrides = scale.models[arm.model]
                if name in ("hip_nano", "hip_micro"):
                    build_model(name, [Modality("image", 256, 3, (16, 16))], **overrides, **arm.overrides)
        names = {arm.name for arm in study.arms}
        assert {claim.better for claim in study.claims} | {claim.worse for claim in study.claims} <= names


def _result(arm, low, high, seed=0):
    return ArmResult(arm, seed, ((low + high) / 2, low, high), (20.0, 15.0, 25.0), 10.0)


@pytest.mark.parametrize(
    ("better", "worse", "said"),
    [((60, 65), (40, 50), "shown"), ((40, 50), (60, 65), "opposite is shown"), ((40, 61), (60, 65), "undecided")],
)
def test_verdicts_follow_the_intervals(better, worse, said):
    results = [_result("a", *better), _result("b", *worse)]
    assert said in verdict(Claim("a", "b"), results, "finetuned")
    assert "undecided" in verdict(Claim("a", "b"), results, "probed")
    assert verdict(Claim("a", "c"), results, "finetuned").endswith("not run")


def test_with_several_seeds_each_arm_is_compared_with_the_other_of_its_seed():
    """Seeds differ by far more than the arms do within one, and the intervals over examples overlap."""
    centres = {0: 50, 1: 60, 2: 70}
    results = [_result("a", c - 5 + 2, c + 5 + 2 + seed / 10, seed) for seed, c in centres.items()]
    results += [_result("b", c - 5, c + 5, seed) for seed, c in reversed(centres.items())]
    text = verdict(Claim("a", "b"), results, "finetuned")
    assert text == "a > b, fine-tuned: shown (+2.0 [+1.9, +2.2], 3 seeds paired)"
    assert "opposite is shown" in verdict(Claim("b", "a"), results, "finetuned")


def test_the_interval_of_a_mean_is_students():
    low, high = t_interval(np.array([1.0, 2.0, 3.0]))  # mean 2, standard error 0.577, t of 2 degrees of freedom 4.303
    assert (low, high) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)


def test_table_puts_the_papers_figure_beside_ours():
    study = STUDIES["positions"]
    results = [_result("learned + MAE", 50, 60, seed) for seed in (0, 1)] + [_result("learned", 30, 40)]
    table = render_table(ExperimentOptions(study="positions", shards="/x"), study, results)
    assert "| learned + MAE | 81 | 55.0 ± 0.0 |" in table
    assert "| learned | 70.1 | 35.0 [30.0, 40.0] |" in table
    assert "* learned + MAE > learned, fine-tuned: shown (+20.0, one seed)" in table


def test_unknown_studies_and_arms_are_refused():
    with pytest.raises(UserError, match="did you mean 'positions'"):
        ExperimentOptions(study="position", shards="/x")
    with pytest.raises(UserError, match="arms=learnt"):
        ExperimentOptions(study="positions", shards="/x", arms=("learnt",))
    with pytest.raises(UserError, match="needs shards"):
        ExperimentOptions(study="positions")


def test_throughput_table_has_a_line_for_each_model_and_size():
    found = measure_throughput(("hip_nano",), (8, 16), steps=2)
    assert [entry.side for entry in found] == [8, 16]
    assert all(entry.steps_per_second and entry.steps_per_second > 0 for entry in found)
    assert "| 16 | 256 | hip_nano | 1 |" in render_throughput(found, "cpu")


def test_the_full_scale_pretrains_on_gpus_and_the_small_one_here() -> None:
    def pretraining(scale: str, **values: int) -> PretrainOptions:
        options = ExperimentOptions("positions", shards="data", scale=scale, **values)
        return pretraining_of(options, STUDIES["positions"].scales[scale], ModelOptions("hip_16"), "data", "arm", 0)

    full, small = pretraining("full", gpus=4), pretraining("small")
    check_options(full)
    check_options(small)
    assert (full.scale.workers, full.scale.gpus_per_worker, full.engine.kind) == (4, 1, "deepspeed")
    assert full.engine.precision == "bf16"
    assert (small.scale.workers, small.engine.kind, small.engine.precision) == (0, "torch", "fp32")
