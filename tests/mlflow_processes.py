"""Real MLflow servers on loopback for integration tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

_START_SECONDS = 150.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """A child process that answers HTTP when it is ready."""

    def __init__(self, arguments: list[str], port: int, health: str, folder: Path, **environment: str) -> None:
        self.arguments, self.port, self.health, self.folder = arguments, port, health, folder
        # MLflow starts uvicorn by name.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", **environment}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.arguments, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "service.log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(self.url + self.health, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        self.stop()
        raise AssertionError((self.folder / "service.log").read_text()[-3000:])

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def tracking_server(folder: Path, migrated_database: Path) -> Service:
    """On a copy of the database, which all tests of the session share."""
    folder.mkdir(exist_ok=True)
    database = shutil.copyfile(migrated_database, folder / "mlflow.db")
    port = free_port()
    arguments = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts")]
    return Service(arguments, port, "/health", folder)


def model_server(folder: Path, model: str, tracking_uri: str) -> Service:
    port = free_port()
    arguments = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--model-uri", model]
    return Service(arguments, port, "/ping", folder, MLFLOW_TRACKING_URI=tracking_uri)
