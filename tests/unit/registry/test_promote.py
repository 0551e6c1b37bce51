from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_data import IMAGE, example, write_dataset, write_model, write_small_dataset
from mlflow.tracking import MlflowClient

from hip_model.export import from_pretrained, load_metadata, save_pretrained
from pipeline.errors import UserError
from pipeline.evaluate.options import IntervalOptions
from pipeline.evaluate.report import RESAMPLES, Findings, write_report
from pipeline.evaluate.resampling import Estimate, Units, bootstrap_mean
from pipeline.registry.evaluations import EVALUATIONS_TAG, Evaluation, find_evaluations
from pipeline.registry.options import PromoteOptions
from pipeline.registry.promote import DECISION_TAG, PromotionRefusedError, promote


class _Registry:
    """A registry whose versions carry recorded evaluations; the packages themselves are not needed to compare."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
        self.client.create_registered_model("clips")

    def add(self, top1: float, dataset: str = "d") -> str:
        evaluation = Evaluation("linear_probe", dataset, {"top1": Estimate(top1, top1 - 0.01, top1 + 0.01, 100)})
        tags = {EVALUATIONS_TAG: json.dumps([evaluation.to_dict()])}
        version = self.client.create_model_version("clips", str(self.storage / "package"), tags=tags)
        self.client.set_registered_model_alias("clips", "candidate", version.version)
        return str(version.version)

    def evaluated(self, report: str, hits: np.ndarray) -> str:
        """A version with a recorded evaluation whose report is there; champion if there is none yet."""
        score = bootstrap_mean(hits, Units([str(index) for index in range(len(hits))]), IntervalOptions(), 0)
        folder = self.storage / "evaluations" / report
        write_report(str(folder), "linear_probe", {"weights": report, "fingerprint": "d"}, Findings({"top1": score}))
        found = find_evaluations(str(self.storage), report)
        tags = {EVALUATIONS_TAG: json.dumps([evaluation.to_dict() for evaluation in found])}
        version = self.client.create_model_version("clips", str(self.storage / "package"), tags=tags)
        self.client.set_registered_model_alias("clips", "candidate", version.version)
        if str(version.version) == "1":
            self.client.set_registered_model_alias("clips", "champion", version.version)
        return str(version.version)

    def add_package(self, model: Path) -> str:
        """A version with weights to measure and no recorded evaluation."""
        package = self.storage / f"package_{model.name}"
        shutil.copytree(model, package / "artifacts" / "model")
        (package / "MLmodel").write_text("flavors: {}\n")
        version = self.client.create_model_version("clips", str(package))
        self.client.set_registered_model_alias("clips", "candidate", version.version)
        return str(version.version)

    def promote(self, **changes: Any) -> str:
        return promote(PromoteOptions("clips", storage=str(self.storage), **changes)).version

    def champion(self) -> str:
        return str(self.client.get_model_version_by_alias("clips", "champion").version)

    def decision(self, version: str) -> dict[str, Any]:
        return dict(json.loads(self.client.get_model_version("clips", version).tags[DECISION_TAG]))


@pytest.fixture
def registry(run_storage: Path) -> _Registry:
    return _Registry(run_storage)


def test_the_first_candidate_becomes_champion(registry: _Registry) -> None:
    registry.add(0.5)
    assert registry.promote() == "1"
    assert registry.champion() == "1"


def test_a_better_one_replaces_it_and_a_rollback_returns(registry: _Registry) -> None:
    registry.add(0.5)
    registry.promote()
    registry.add(0.7)
    assert registry.promote() == "2"
    assert registry.decision("2")["metrics"]["linear_probe.top1"]["gain"] == pytest.approx(0.2)
    assert registry.promote(rollback=True) == "1"
    assert registry.champion() == "1"
    assert "rolled back" in registry.decision("2")["reason"]
    with pytest.raises(UserError, match="no way back"):
        registry.promote(rollback=True)


def test_one_that_is_not_better_is_refused_and_the_reason_kept(registry: _Registry) -> None:
    registry.add(0.7)
    registry.promote()
    registry.add(0.705)
    with pytest.raises(PromotionRefusedError, match="not better by more than its interval"):
        registry.promote()
    assert registry.champion() == "1"
    assert registry.decision("2")["promote"] is False


def test_recorded_evaluations_are_compared_file_by_file(registry: _Registry) -> None:
    """Both are better on the same files: 1 % more on each of them is no chance, though the files differ by 50 %."""
    files = np.random.default_rng(0).uniform(0.25, 0.75, 40)
    for report, hits in (("one", files), ("two", files + 0.01)):
        registry.evaluated(report, hits)
    damaged = registry.storage / "evaluations" / "one" / RESAMPLES
    kept = damaged.read_bytes()
    damaged.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(PromotionRefusedError, match="not better by more than its interval"):
        registry.promote()
    damaged.write_bytes(kept)
    assert registry.promote() == "2"
    assert "over the same files" in registry.decision("2")["reason"]


def test_different_data_cannot_be_compared(registry: _Registry) -> None:
    registry.add(0.5)
    registry.promote()
    registry.add(0.9, dataset="other")
    with pytest.raises(UserError, match="shards="):
        registry.promote()


def test_the_champion_cannot_replace_itself(registry: _Registry) -> None:
    registry.add(0.5)
    registry.promote()
    with pytest.raises(UserError, match="already is champion"):
        registry.promote()


def test_unknown_names_are_refused(registry: _Registry) -> None:
    registry.add(0.5)
    with pytest.raises(UserError, match="no alias 'best'"):
        registry.promote(candidate="best")
    with pytest.raises(UserError, match="are the same"):
        PromoteOptions("clips", candidate="champion")
    with pytest.raises(UserError, match=r"absent=\['audio'\] is about shards="):
        PromoteOptions("clips", absent=("audio",))


def test_given_shards_both_are_measured_there_before_the_alias_moves(
    registry: _Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache of fetched models
    shards = write_small_dataset(tmp_path / "shards")
    seeing = Path(write_model(tmp_path / "seeing", shards))
    model = from_pretrained(seeing)
    with torch.no_grad():
        for parameter in [*model.embed.parameters(), *model.positions.parameters()]:
            parameter.zero_()
    blind = tmp_path / "blind"
    save_pretrained(model, blind, load_metadata(seeing))
    measured = {"shards": shards, "task": "linear_probe"}

    registry.add_package(blind)
    registry.promote()
    registry.add_package(seeing)
    assert registry.promote(**measured) == "2"
    decision = registry.decision("2")
    assert decision["metrics"]["top1"]["gain"] > 0.3
    assert decision["metrics"]["top1"]["paired"]
    assert decision["measured"] == f"linear_probe on {shards}"
    registry.client.set_registered_model_alias("clips", "candidate", "1")
    with pytest.raises(PromotionRefusedError, match="does not replace version 2"):
        registry.promote(**measured)
    assert registry.champion() == "2"


def test_versions_of_other_modalities_are_measured_on_what_is_there(
    registry: _Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = {split: [example(index, split) for index in range(30)] for split in ("train", "validation")}
    for row in (row for split in rows.values() for row in split):
        del row.arrays["audio"]
    silent = write_dataset(tmp_path / "silent", rows, (IMAGE,))
    registry.add_package(Path(write_model(tmp_path / "both", write_small_dataset(tmp_path / "shards"))))
    registry.promote()
    registry.add_package(Path(write_model(tmp_path / "pictures", silent)))
    wanted = {"shards": silent, "task": "reconstruction"}
    with pytest.raises(UserError, match="the model reads 'audio', the data has image"):
        registry.promote(**wanted)
    with pytest.raises(PromotionRefusedError, match="does not replace version 1"):  # neither was trained
        registry.promote(**wanted, absent=("audio",))
