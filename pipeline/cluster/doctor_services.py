"""Judges MLflow as each machine sees it, and whether a folder given for runs can serve a cluster."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

from pipeline.cluster.doctor_options import FAIL, OK, WARN, Finding
from pipeline.storage import redact


def check_tracking(found: dict[str, Any], uri: str, nodes: int) -> Iterator[Finding]:
    """The answer of the store at ``uri`` to one machine of ``nodes``."""
    shown = redact(uri)
    if "error" in found:
        fix = (
            f"start it (mlflow server --host 127.0.0.1 --port 5000) or correct tracking.uri={shown}; "
            "training runs without it and sends what was missed later"
        )
        yield Finding("mlflow", FAIL, redact(str(found["error"])), fix)
    elif found["kind"] == "file" and nodes > 1:
        fix = "run `mlflow server` and give tracking.uri=http://host:5000: the first worker may be on any node"
        yield Finding("mlflow", FAIL, f"a SQLite file, seen by one machine of {nodes}", fix)
    elif found["kind"] != "server":
        yield Finding("mlflow", OK, shown)
    elif found["status"] in (401, 403):
        fix = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on every node (runtime_env, or a Kubernetes "
            "secret); never write them into tracking.uri"
        )
        yield Finding("mlflow", FAIL, f"{shown} refuses (HTTP {found['status']})", fix)
    elif found["status"] != 200:
        fix = "look at the server's log; is tracking.uri the server's root?"
        yield Finding("mlflow", FAIL, f"{shown} answers HTTP {found['status']}", fix)
    else:
        yield _server(found, shown)
        if found.get("artifacts"):
            yield check_artifacts(found["artifacts"], nodes)


def _server(found: dict[str, Any], shown: str) -> Finding:
    here = importlib.metadata.version("mlflow")
    there = found["version"]
    what = f"{shown}, version {there or 'unknown'}, {found['seconds']:.2f} s"
    if there and there.split(".")[0] != here.split(".")[0]:
        fix = f"the client is {here}: use servers and clients of one major version"
        return Finding("mlflow", WARN, what, fix)
    return Finding("mlflow", OK, what)


def check_artifacts(found: dict[str, Any], nodes: int) -> Finding:
    """Where the server wants pictures and models, as seen by one machine of ``nodes``."""
    place = redact(found["location"])
    if "error" in found:
        fix = (
            "give this machine what that place asks for (credentials, and boto3 for s3://), or start the server with "
            "--artifacts-destination, then only the server needs it; training goes on without and sends them later"
        )
        return Finding("mlflow artifacts", FAIL, f"{place}: {redact(str(found['error']))}", fix)
    if found["folder"] and nodes > 1:
        fix = "start the server with --artifacts-destination: each machine writes pictures and models to its own disk"
        return Finding("mlflow artifacts", WARN, f"{place}, a folder of each machine", fix)
    kept = f"; {found['kept']} was written there and may not be deleted" if "kept" in found else ""
    return Finding("mlflow artifacts", OK, place + kept)
