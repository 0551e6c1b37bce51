from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_processes import Service, model_server
from mlflow_store import migrated_database
from registry_models import LABELS, make_model
from served_model_client import LOAD, ask, check_answers

from pipeline.demo.clips import make_demo_clips
from pipeline.registry.options import RegisterOptions
from pipeline.registry.register import register

__all__ = ["migrated_database"]

pytestmark = pytest.mark.integration

# Our packages are installed here; a colleague's environment does not have them.
_BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipeline", "hip_model", "jobs"):
            raise ImportError("no checkout here: " + name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Path:
    storage = tmp_path_factory.mktemp("storage")
    shutil.copyfile(migrated_database, storage / "mlflow.db")
    model = make_model(tmp_path_factory.mktemp("models") / "nano")
    register(RegisterOptions(str(model), "clips", str(storage)))
    return storage


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    return make_demo_clips(folder, 1, num_sounds=0, num_images=0, size_pixels=32)[0]


@pytest.fixture(scope="module")
def served(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("served")
    service = model_server(folder, "models:/clips@candidate", f"sqlite:///{registry}/mlflow.db")
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_BLOCK)
    service.environment["PYTHONPATH"] = str(site)
    service.start()
    yield service
    service.stop()


def test_it_loads_by_name_without_the_checkout(registry: Path, clip: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _BLOCK + LOAD, f"sqlite:///{registry}/mlflow.db", str(clip)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.partition("RESULT")[2])
    check_answers(found)


def test_a_served_model_answers_and_survives_garbage(served: Service, clip: Path) -> None:
    media = base64.b64encode(clip.read_bytes()).decode()
    status, answer = ask(served.url, [media], output="labels", top_k=1)
    assert status == 200
    assert answer["predictions"][0]["labels"][0] in LABELS
    for garbage in (base64.b64encode(b"not media").decode(), base64.b64encode(clip.read_bytes()[:200]).decode(), "??"):
        status, answer = ask(served.url, [garbage])
        assert status == 400, answer
        assert "row 0" in answer
    status, answer = ask(served.url, [media], output="colours")
    assert status == 400
    assert "embeddings, labels, reconstructions" in answer
    status, answer = ask(served.url, [str(clip)])
    assert status == 400, "a server must not read paths that a request names"
    status, answer = ask(served.url, [media, "??"], output="embeddings")
    assert status == 200
    assert [bool(row["error"]) for row in answer["predictions"]] == [False, True]
