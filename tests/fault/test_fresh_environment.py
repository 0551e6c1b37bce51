"""A registered model in an environment of its own, made from its requirements alone: it loads, predicts and serves."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_processes import Service, free_port
from registry_models import LABELS, make_model
from served_model_client import LOAD, ask, check_answers

from pipeline.demo.clips import make_demo_clips
from pipeline.registry.options import RegisterOptions
from pipeline.registry.register import register

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800)]

_INSTALL_SECONDS = 1500


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def python(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new virtual environment with the registered model's requirements and nothing else."""
    model = make_model(tmp_path_factory.mktemp("models") / "nano")
    package = register(RegisterOptions(str(model), "clips", str(storage))).package
    requirements = Path(package.removeprefix("file://")) / "requirements.txt"
    target = tmp_path_factory.mktemp("environment") / "venv"
    interpreter = target / "bin" / "python"
    for command in _commands(target, interpreter, requirements):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, env=_environment())
        assert done.returncode == 0, done.stderr[-3000:]
    return interpreter


def _commands(target: Path, interpreter: Path, requirements: Path) -> list[list[str]]:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        install = [str(interpreter), "-m", "pip", "install", "-q", "-r", str(requirements)]
        return [[sys.executable, "-m", "venv", str(target)], install]
    install = [uv, "pip", "install", "-q", "--python", str(interpreter), "-r", str(requirements)]
    return [[uv, "venv", "-q", "--python", sys.executable, str(target)], install]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if "PIP_FIND_LINKS" in kept:
        kept.setdefault("UV_FIND_LINKS", kept["PIP_FIND_LINKS"])
    return kept


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_clips(tmp_path_factory.mktemp("clips"), 1, num_sounds=0, num_images=0, size_pixels=32)[0]


def test_it_predicts_without_this_project_installed(storage: Path, python: Path, clip: Path, tmp_path: Path) -> None:
    absent = subprocess.run([str(python), "-c", "import pipeline"], capture_output=True, cwd=tmp_path, timeout=120)
    assert absent.returncode != 0
    command = [str(python), "-c", LOAD, f"sqlite:///{storage}/mlflow.db", str(clip)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=_environment(), timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.partition("RESULT")[2])
    check_answers(found)
    print(f"processor seconds from loading to the first answer: {found['cpu_seconds_from_load_to_answer']:.1f}")
    assert found["cpu_seconds_from_load_to_answer"] < 10


def test_it_is_served_from_there(storage: Path, python: Path, clip: Path, tmp_path: Path) -> None:
    port = free_port()
    arguments = [str(python), "-m", "mlflow", "models", "serve", "--env-manager", "local", "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--model-uri", "models:/clips@candidate"]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    service = Service(
        arguments, port, "/ping", tmp_path, PATH=path, MLFLOW_TRACKING_URI=f"sqlite:///{storage}/mlflow.db"
    )
    service.environment.pop("PYTHONPATH", None)
    service.start()
    try:
        status, answer = ask(service.url, [base64.b64encode(clip.read_bytes()).decode()], output="labels")
        assert status == 200
        assert sorted(answer["predictions"][0]["labels"]) == sorted(LABELS)
        status, answer = ask(service.url, [base64.b64encode(b"not media").decode()])
        assert status == 400, answer
        status, _ = ask(service.url, [base64.b64encode(clip.read_bytes()).decode()])
        assert status == 200
    finally:
        service.stop()
