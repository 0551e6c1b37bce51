"""A Ray cluster in processes of its own, as ``ray start --head`` makes it by hand; only these are ended again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import requests


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def ray_head(num_cpus: int) -> Iterator[str]:
    """A head with its own ports and folder; gives the address of its dashboard."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    gcs, dashboard, agent, client = free_ports(4)
    python = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{python}:{os.environ['PATH']}"}
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "PYTHONPATH"):
        environment.pop(name, None)
    command = [
        str(python / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={num_cpus}",
        f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
        f"--object-store-memory={300 * 2**20}",
    ]  # fmt: skip
    with (Path(folder) / "start.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait(address, process, Path(folder) / "start.log")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        _end_processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with suppress(requests.RequestException):
            if requests.get(f"{address}/api/version", timeout=5).ok:
                return
        time.sleep(0.5)
    raise AssertionError(f"Ray did not start: {log.read_text()}")


def _end_processes_of(folder: str) -> None:
    """Whatever still names the folder on its command line was started for it."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(folder in part for part in process.cmdline()):
                process.kill()
