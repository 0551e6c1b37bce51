from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from registry_models import make_model

from pipeline.errors import InfrastructureError, UserError
from pipeline.evaluate.loaded import load_model
from pipeline.registry.resolve import resolve_model
from pipeline.tracking.options import TrackingOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "nano")


def _run(storage: Path, name: str, model: Path, steps: list[int], run_id: str = "r1") -> Path:
    folder = storage / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "RUNNING", "tracking_run_id": run_id}))
    for step in steps:
        shutil.copytree(model, folder / "checkpoints" / f"step_{step:08d}")
    return folder


def test_a_folder_is_itself(model: Path) -> None:
    assert resolve_model(str(model)) == model
    assert resolve_model(f"file://{model}") == model


def test_a_run_means_its_last_whole_checkpoint(model: Path, tmp_path: Path) -> None:
    folder = _run(tmp_path, "first", model, [2, 10])
    (folder / "checkpoints" / "step_00000012").mkdir()
    (folder / "checkpoints" / "step_00000012" / "model.safetensors").write_bytes(b"being written")
    expected = folder / "checkpoints" / "step_00000010"
    for spec in ("first", str(folder), str(expected)):
        assert resolve_model(spec, str(tmp_path)) == expected


def test_a_run_that_keeps_no_average_says_so(model: Path, tmp_path: Path) -> None:
    folder = _run(tmp_path, "first", model, [2])
    with pytest.raises(UserError, match=r"model=first/average: .*step_00000002 holds no average; optim\.ema_decay"):
        resolve_model("first/average", str(tmp_path))
    average = folder / "checkpoints" / "step_00000002" / "average"
    shutil.copytree(model, average)
    for spec in ("first/average", f"{folder}/average", str(average)):
        assert resolve_model(spec, str(tmp_path)) == average


def test_a_run_in_an_object_store_keeps_its_name_on_this_machine(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the cache of fetched models
    folder = _run(tmp_path, "first", model, [2, 10])
    store = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(folder), f"{store}/first", recursive=True)
    found = resolve_model("first", store)
    assert load_model(found, "cpu").name == "first/step_00000010"
    assert resolve_model(f"{store}/first", store) == found


def test_a_tracking_run_is_found_by_its_id(model: Path, tmp_path: Path) -> None:
    _run(tmp_path, "other", model, [1], "r0")
    folder = _run(tmp_path, "first", model, [4], "r1")
    assert resolve_model("runs:/r1", str(tmp_path)) == folder / "checkpoints" / "step_00000004"


def test_a_misspelt_run_names_the_nearest(model: Path, tmp_path: Path) -> None:
    _run(tmp_path, "baseline", model, [1])
    with pytest.raises(UserError, match="did you mean 'baseline'"):
        resolve_model("baselin", str(tmp_path))


def test_an_empty_storage_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no runs"):
        resolve_model("anything", str(tmp_path))


def test_what_is_not_found_is_named_by_the_setting_that_named_it(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for spec in ("anything", str(tmp_path / "photos")):
        with pytest.raises(UserError, match=f"^init={spec}: "):
            resolve_model(spec, str(tmp_path), key="init")


def test_a_run_without_a_checkpoint_says_so(model: Path, tmp_path: Path) -> None:
    _run(tmp_path, "young", model, [])
    with pytest.raises(UserError, match=r"no checkpoint yet \(status RUNNING\)"):
        resolve_model("young", str(tmp_path))


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        resolve_model(str(tmp_path / "photos"))
    (tmp_path / "photos" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve_model(str(tmp_path / "photos"))


def test_looking_in_a_storage_that_is_not_there_makes_none(tmp_path: Path) -> None:
    for spec in ("models:/clips@champion", "runs:/0123"):
        with pytest.raises(UserError, match=r"typo/mlflow\.db: there is no such file; give storage="):
            resolve_model(spec, str(tmp_path / "typo"))
    assert not (tmp_path / "typo").exists()


def test_registered_names_that_do_not_exist_name_the_nearest(run_storage: Path) -> None:
    client = MlflowClient(f"sqlite:///{run_storage}/mlflow.db")
    with pytest.raises(UserError, match="no model is registered yet"):
        resolve_model("models:/clips@champion", str(run_storage))
    client.create_registered_model("clips")
    client.create_model_version("clips", str(run_storage / "gone"))
    client.set_registered_model_alias("clips", "candidate", "1")
    with pytest.raises(UserError, match="did you mean 'clips'"):
        resolve_model("models:/clip@candidate", str(run_storage))
    with pytest.raises(UserError, match="did you mean 'candidate'"):
        resolve_model("models:/clips@candidat", str(run_storage))
    with pytest.raises(UserError, match="no version '7'"):
        resolve_model("models:/clips/7", str(run_storage))
    with pytest.raises(UserError, match="there is no model any more"):
        resolve_model("models:/clips@candidate", str(run_storage))
    with pytest.raises(UserError, match="models:/name@alias"):
        resolve_model("models:/clips", str(run_storage))


def test_a_foreign_registered_model_is_refused(run_storage: Path, tmp_path: Path) -> None:
    package = tmp_path / "foreign"
    package.mkdir()
    (package / "MLmodel").write_text("flavors:\n  python_function:\n    python_model: python_model.pkl\n")
    client = MlflowClient(f"sqlite:///{run_storage}/mlflow.db")
    client.create_registered_model("foreign")
    client.create_model_version("foreign", str(package))
    with pytest.raises(UserError, match=r"not made by hip register and it holds pickled code"):
        resolve_model("models:/foreign/1", str(run_storage))


def test_a_registry_that_is_away_is_an_infrastructure_error(tmp_path: Path) -> None:
    away = TrackingOptions(uri="http://user:hunter2@127.0.0.1:9")
    with pytest.raises(InfrastructureError, match="cannot be reached") as caught:
        resolve_model("models:/clips@champion", str(tmp_path), away)
    assert "hunter2" not in str(caught.value)
