from __future__ import annotations

import json
from pathlib import Path

from registry_models import make_model

from pipeline.evaluate.resampling import Estimate
from pipeline.registry.card import CardFacts, model_card
from pipeline.registry.evaluations import Evaluation, find_evaluations, higher_is_better
from pipeline.registry.inference import Predictor


def _report(storage: Path, name: str, content: object) -> None:
    folder = storage / "evaluations" / name
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(content))


def test_only_whole_reports_of_the_same_weights_count(tmp_path: Path) -> None:
    estimate = Estimate(0.5, 0.4, 0.6, 10).to_dict()
    good = {"task": "knn", "metrics": {"top1": estimate}, "subject": {"weights": "abc", "fingerprint": "f"}}
    _report(tmp_path, "good", good)
    _report(tmp_path, "other", {**good, "subject": {"weights": "xyz", "fingerprint": "f"}})
    _report(tmp_path, "broken", {"task": "knn"})
    _report(tmp_path, "list", [1, 2])
    assert [evaluation.key for evaluation in find_evaluations(str(tmp_path), "abc")] == ["knn@f"]
    assert find_evaluations(str(tmp_path / "nowhere"), "abc") == []


def test_an_evaluation_survives_its_tag() -> None:
    evaluation = Evaluation("knn", "f", {"top1": Estimate(0.5, 0.4, 0.6, 10)})
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation


def test_errors_and_ranks_are_better_when_low() -> None:
    assert [higher_is_better(name) for name in ("top1", "psnr/video", "loss", "squared_error", "median_rank")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_the_card_says_what_is_not_known(tmp_path: Path) -> None:
    predictor = Predictor.load(make_model(tmp_path / "nano", with_head=False))
    card = model_card(predictor, CardFacts("clips", "A test.", "not stated", "s3://key:hunter2@bucket/run"))
    assert "not evaluated before it was registered" in card
    assert "none (embeddings and reconstructions)" in card
    assert "hunter2" not in card
