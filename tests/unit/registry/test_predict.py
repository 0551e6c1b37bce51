from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow.pyfunc import PythonModel, save_model
from mlflow.tracking import MlflowClient
from PIL import Image
from registry_models import LABELS, make_model

from pipeline.demo.clips import make_demo_clips
from pipeline.errors import DataError, UserError
from pipeline.registry.options import PredictOptions
from pipeline.registry.predict import list_inputs, predict


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("models") / "nano"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_demo_clips(folder, 2, num_sounds=1, num_images=0, size_pixels=32)
    (folder / "broken.mp4").write_bytes(b"no media in here")
    return folder


def test_a_folder_gives_embeddings_and_a_list_of_what_was_skipped(model: str, clips: Path, tmp_path: Path) -> None:
    report = predict(PredictOptions(model, str(clips), str(tmp_path), workers=0))
    table = pq.read_table(tmp_path / "embeddings.parquet")
    assert report.files == 4
    assert table.num_rows == report.windows == 6
    assert table["start_seconds"].to_pylist() == [0.0, 1.0] * 3
    assert [Path(source).name for source in report.failed] == ["broken.mp4"]
    [line] = list(csv.DictReader((tmp_path / "failed.csv").open()))
    assert "not_media" in line["reason"]


def test_npz_holds_the_same_numbers(model: str, clips: Path, tmp_path: Path) -> None:
    for file_format in ("parquet", "npz"):
        predict(PredictOptions(model, str(clips), str(tmp_path), format=file_format, workers=0))
    first = np.array(pq.read_table(tmp_path / "embeddings.parquet")["embedding"].to_pylist())
    with np.load(tmp_path / "embeddings.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(first, arrays["embedding"], rtol=1e-6)
        assert arrays["source"].shape == (6,)


def test_labels_are_ranked_per_file(model: str, clips: Path, tmp_path: Path) -> None:
    report = predict(PredictOptions(model, str(clips), str(tmp_path), kind="labels", top_k=2, workers=0))
    lines = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert len(lines) == len(report.labels) == 3
    for line in lines:
        assert {line["label_1"], line["label_2"]} <= set(LABELS)
        assert float(line["score_1"]) >= float(line["score_2"])


def test_reconstructions_are_files_of_the_right_kind(model: str, clips: Path, tmp_path: Path) -> None:
    clip = next(clips.rglob("clip_0000.mp4"))
    report = predict(PredictOptions(model, str(clip), str(tmp_path), kind="reconstructions", mask_ratio=0.5))
    assert sorted(Path(path).suffix for path in report.outputs) == [".mp4", ".mp4", ".wav", ".wav"]
    assert all(Path(path).stat().st_size > 100 for path in report.outputs)


def test_a_table_names_files_beside_it(model: str, clips: Path, tmp_path: Path) -> None:
    clip = next(clips.rglob("clip_0001.mp4"))
    (clips / "list.csv").write_text(f"path\n{clip.relative_to(clips)}\n")
    assert [Path(source).resolve() for source in list_inputs(str(clips / "list.csv"))] == [clip.resolve()]
    (clips / "list.csv").unlink()


def test_only_bad_files_is_a_data_error(model: str, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    with pytest.raises(DataError, match="not_in_recipe"):
        predict(PredictOptions(model, str(tmp_path), str(tmp_path / "out")))


def test_missing_and_empty_inputs_are_named(model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        predict(PredictOptions(model, str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        predict(PredictOptions(model, str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("kind", "label", "labels"), ("format", "csv", "npz"), ("mask_ratio", 1.0, "less than 1"), ("top_k", 0, "top_k")],
)
def test_options_name_key_value_and_choice(key: str, value: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        PredictOptions("m", "i", **{key: value})  # type: ignore[arg-type]


class _Foreign(PythonModel):  # type: ignore[misc]
    """Someone else's model, pickled."""

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> list[int]:
        return [len(path) for path in model_input["media"]]


def test_a_foreign_model_runs_only_when_it_is_trusted(
    clips: Path, run_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache of fetched models
    save_model(str(tmp_path / "foreign"), python_model=_Foreign(), pip_requirements=["mlflow"])
    client = MlflowClient(f"sqlite:///{run_storage}/mlflow.db")
    client.create_registered_model("foreign")
    client.create_model_version("foreign", str(tmp_path / "foreign"))
    asked = {"model": "models:/foreign/1", "input": str(clips), "output": str(tmp_path / "out")}
    with pytest.raises(UserError, match="trust=true"):
        predict(PredictOptions(**asked, storage=str(run_storage)))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    report = predict(PredictOptions(**asked, storage=str(run_storage), trust=True))  # type: ignore[arg-type]
    assert report.outputs == [str(tmp_path / "out" / "predictions.json")]
    answers = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [answer["0"] for answer in answers] == [len(source) for source in list_inputs(str(clips))]
