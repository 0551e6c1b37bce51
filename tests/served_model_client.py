"""How a colleague uses a registered model: a script that loads it by name, and requests to a server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from registry_models import LABELS

LOAD = """
import json, sys, time
import mlflow, numpy as np, pandas as pd, torch
mlflow.set_tracking_uri(sys.argv[1])
torch.set_num_threads(1)
begun = time.process_time()
model = mlflow.pyfunc.load_model("models:/clips@candidate")
media = pd.DataFrame({"media": [sys.argv[2], b"no media"]})
found, first = {}, None
for output in ("labels", "embeddings", "reconstructions"):
    rows = model.predict(media, params={"output": output})
    first = first or time.process_time() - begun
    found[output] = json.loads(rows.drop(columns=[c for c in rows if "_" in c]).to_json(orient="records"))
    found[output + "_columns"] = list(rows.columns)
graph = mlflow.pytorch.load_model("models:/clips@candidate")
out = graph(torch.zeros(3, 1024, 3), torch.zeros(3, 4000, 1))
found["graph"] = {name: list(value.shape) for name, value in out.items()}
found["cpu_seconds_from_load_to_answer"] = first
print("RESULT" + json.dumps(found))
"""
"""Arguments: tracking URI and a media file. Prints RESULT and JSON."""


def check_answers(found: dict[str, Any]) -> None:
    """What the script above printed is what the model promises."""
    good, bad = found["labels"]
    assert sorted(good["labels"]) == sorted(LABELS)
    assert sum(good["scores"]) == pytest.approx(1.0, abs=1e-4)
    assert good["windows"] == 2
    assert good["error"] is None
    assert "other_file" in bad["error"]
    assert len(found["embeddings"][0]["embedding"]) == found["graph"]["embedding"][1]
    assert {"video_mp4", "audio_wav"} <= set(found["reconstructions_columns"])
    assert found["graph"] == {"embedding": [3, found["graph"]["embedding"][1]], "probabilities": [3, len(LABELS)]}


def ask(url: str, media: list[str], **params: Any) -> tuple[int, Any]:
    """Status and body of one request to a served model."""
    body = {"dataframe_split": {"columns": ["media"], "data": [[item] for item in media]}, "params": params}
    request = urllib.request.Request(
        url + "/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
