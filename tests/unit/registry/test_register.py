from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient
from registry_models import make_model

from hip_model.export import weights_digest
from pipeline.errors import InfrastructureError, UserError
from pipeline.registry import register as register_module
from pipeline.registry.evaluations import EVALUATIONS_TAG
from pipeline.registry.options import RegisterOptions
from pipeline.registry.register import FINGERPRINT_TAG, register
from pipeline.registry.resolve import resolve_model
from pipeline.registry.safety import pickled_parts
from pipeline.tracking.options import TrackingOptions
from pipeline.tracking.runs import open_run


def _client(storage: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{storage}/mlflow.db")


def _record_evaluation(storage: Path, weights: str) -> None:
    folder = storage / "evaluations" / "linear_probe-1"
    folder.mkdir(parents=True)
    estimate = {"value": 0.91, "low": 0.88, "high": 0.94, "count": 200}
    subject = {"weights": weights, "fingerprint": "sha256:data"}
    report = {"task": "linear_probe", "metrics": {"top1": estimate}, "subject": subject}
    (folder / "report.json").write_text(json.dumps(report))


def test_a_version_holds_model_card_tags_and_alias(run_storage: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "nano")
    _record_evaluation(run_storage, weights_digest(model))
    version = register(RegisterOptions(str(model), "clips", str(run_storage), licence="CC0", pytorch=False))
    entry = _client(run_storage).get_model_version_by_alias("clips", "candidate")
    assert version.uri == "models:/clips@candidate"
    assert entry.tags[FINGERPRINT_TAG] == "sha256:0123"
    assert entry.tags["linear_probe.top1"] == "0.91 [0.88, 0.94]"
    assert json.loads(entry.tags[EVALUATIONS_TAG])[0]["dataset"] == "sha256:data"
    for said in ("CC0", "sha256:0123", "0.91", "blue_square_down", "## Limits"):
        assert said in entry.description
    folder = resolve_model("models:/clips@candidate", str(run_storage))
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    package = Path(version.package)
    description = yaml.safe_load((package / "MLmodel").read_text())
    assert pickled_parts(package) == []
    assert "media" in description["signature"]["inputs"]
    assert (package / "README.md").read_text() == entry.description
    assert "torch==" in (package / "requirements.txt").read_text()


def test_the_run_that_trained_it_is_found_and_no_credentials_travel(run_storage: Path, tmp_path: Path) -> None:
    with open_run(TrackingOptions(system_metrics=False), str(run_storage), "first") as tracker:
        tracker.log_metrics({"gpu_hours": 1.5}, 1)
    (run_storage / "first").mkdir()
    record = {"name": "first", "tracking_run_id": tracker.run_id, "examples_consumed": 640}
    (run_storage / "first" / "run.json").write_text(json.dumps(record))
    model = make_model(tmp_path / "exported", with_head=False)
    card = json.loads((model / "config.json").read_text())
    card["metadata"] |= {"run_name": "first", "options": {"tracking": {"uri": "http://user:hunter2@host:5000"}}}
    (model / "config.json").write_text(json.dumps(card))
    version = register(RegisterOptions(str(model), "clips", str(run_storage), pytorch=False))
    entry = _client(run_storage).get_model_version("clips", version.version)
    assert entry.run_id == tracker.run_id
    assert entry.tags["hip.training.examples_consumed"] == "640"
    assert entry.tags["hip.training.gpu_hours"] == "1.5"
    assert all(b"hunter2" not in path.read_bytes() for path in Path(version.package).rglob("*") if path.is_file())


def test_a_failure_on_the_way_leaves_no_version(
    run_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(client: object, name: str) -> None:
        from mlflow.exceptions import MlflowException

        raise MlflowException("http://user:hunter2@host went away")

    monkeypatch.setattr(register_module, "_ensure_registered", broken)
    model = make_model(tmp_path / "nano", with_head=False)
    with pytest.raises(InfrastructureError, match="went away") as caught:
        register(RegisterOptions(str(model), "clips", str(run_storage), pytorch=False))
    assert "hunter2" not in str(caught.value)
    client = _client(run_storage)
    assert list(client.search_registered_models()) == []
    assert list(client.search_logged_models(["1", "0"])) == []


def test_a_model_without_a_recipe_is_refused_before_anything_is_made(run_storage: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "nano", with_head=False)
    card = json.loads((model / "config.json").read_text())
    card["metadata"]["data"]["recipe"] = {}
    (model / "config.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="no token recipe"):
        register(RegisterOptions(str(model), "clips", str(run_storage)))
    assert list(_client(run_storage).search_registered_models()) == []


@pytest.mark.parametrize(("key", "value"), [("name", "a/b"), ("name", " "), ("alias", "latest"), ("alias", "v3")])
def test_names_that_cannot_be_addressed_are_refused(key: str, value: str) -> None:
    with pytest.raises(UserError, match=key):
        RegisterOptions(**{"run": "r", "name": "clips", key: value})
