from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import predictions_to_json
from registry_models import LABELS, make_model

from pipeline.demo.clips import make_demo_clips
from pipeline.registry.serve import ServedModel


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    model = ServedModel()
    model.load_context(SimpleNamespace(artifacts={"model": str(make_model(tmp_path_factory.mktemp("m") / "nano"))}))
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder: Path = tmp_path_factory.mktemp("clips")
    return make_demo_clips(folder, 1, num_sounds=0, num_images=0, size_pixels=32)[0].read_bytes()


def test_a_bad_row_has_its_reason_and_a_good_one_has_null(served: ServedModel, clip: bytes) -> None:
    import io

    answer = io.StringIO()
    predictions_to_json(served.predict(None, pd.DataFrame({"media": [clip, b"words"]})), answer)
    good, bad = json.loads(answer.getvalue())["predictions"]
    assert good["error"] is None
    assert good["windows"] == 2
    assert bad["embedding"] is None
    assert "other_file" in bad["error"]


def test_labels_are_ranked(served: ServedModel, clip: bytes) -> None:
    table = served.predict(None, pd.DataFrame({"media": [clip]}), {"output": "labels", "top_k": 2})
    assert len(table["labels"][0]) == 2
    assert set(table["labels"][0]) <= set(LABELS)
    assert table["scores"][0] == sorted(table["scores"][0], reverse=True)


@pytest.mark.parametrize(
    ("table", "params", "said"),
    [
        (pd.DataFrame({"media": [b"words"]}), {}, "row 0: other_file"),
        (pd.DataFrame({"file": ["x"]}), {}, "column 'media', it has file"),
        (pd.DataFrame({"media": [b""]}), {"output": "colours"}, "valid: embeddings, labels, reconstructions"),
        ([b"words"], {}, "must be a table"),
    ],
)
def test_requests_that_cannot_be_answered_are_client_errors(
    served: ServedModel, table: object, params: dict[str, object], said: str
) -> None:
    with pytest.raises(MlflowException, match=said) as caught:
        served.predict(None, table, params)  # type: ignore[arg-type]
    assert caught.value.get_http_status_code() == 400
