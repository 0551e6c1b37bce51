"""Can this machine reach the MLflow store? Standard library only: Ray sends it to the nodes by value."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from pipeline.tracking.artifact_probe import probe_artifacts

_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def probe_tracking(uri: str, experiment: str, timeout_seconds: float) -> dict[str, Any]:
    """How the store at ``uri`` answers: ``kind``, and ``error`` or ``status`` (HTTP), ``version``, ``seconds``.

    Of a server that lets this machine in also ``artifacts``, see ``probe_artifacts``.
    """
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    began = time.perf_counter()
    try:
        if scheme == "sqlite":
            return {"kind": "file", **_sqlite(uri)}
        if scheme in ("http", "https"):
            found = {"kind": "server", **_server(uri.rstrip("/"), timeout_seconds)}
        else:
            place = urllib.parse.urlsplit(uri)
            port = place.port or _DATABASE_PORTS.get(scheme, 0)
            with socket.create_connection((place.hostname or "localhost", port), timeout_seconds):
                found = {"kind": "database"}
    except (OSError, ValueError) as error:
        return {"kind": scheme, "error": f"{type(error).__name__}: {error}"[:300]}
    found["seconds"] = time.perf_counter() - began
    if found.get("status") == 200:
        found["artifacts"] = probe_artifacts(uri, experiment)
    return found


def _sqlite(uri: str) -> dict[str, Any]:
    path = Path(uri.partition("///")[2].partition("?")[0])
    parent = next(folder for folder in (path, *path.parents) if folder.exists())
    return {} if os.access(parent, os.W_OK) else {"error": f"{parent} cannot be written"}


def _server(uri: str, timeout_seconds: float) -> dict[str, Any]:
    """Ask for one experiment as a client does, with this machine's credentials."""
    headers = {"Content-Type": "application/json"}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    place = urllib.parse.urlsplit(uri)
    user, password = place.username or user, place.password or password
    if user is not None and password is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    base = urllib.parse.urlunsplit(place._replace(netloc=place.netloc.rpartition("@")[2]))
    ask = urllib.request.Request(
        f"{base}/api/2.0/mlflow/experiments/search", json.dumps({"max_results": 1}).encode(), headers, method="POST"
    )
    try:
        with urllib.request.urlopen(ask, timeout=timeout_seconds) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    version = ""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{base}/version", headers=headers), timeout=5) as answer:
            version = answer.read(40).decode(errors="replace")
    except OSError:
        pass  # a proxy may hide it
    return {"status": status, "version": version}
