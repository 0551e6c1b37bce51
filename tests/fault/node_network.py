"""Hosts with addresses of their own on this machine: network namespaces on one bridge, a Ray node in each.

Needs root. Storage is shared, as on a cluster with a network file system. Ends only what it started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

_START_SECONDS = 240.0
_START_ATTEMPTS = 3
_PORT = 6500


def run(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def namespaces_work() -> bool:
    """Whether this user may make a namespace with a cable to it."""
    name = f"hipprobe{os.getpid()}"
    if os.geteuid() or shutil.which("ip") is None:
        return False
    try:
        run("ip", "netns", "add", name)
        run("ip", "link", "add", "hipprobe0", "type", "veth", "peer", "name", "eth0", "netns", name)
        return True
    except RuntimeError:
        return False
    finally:
        run("ip", "netns", "del", name, check=False)


class Network:
    """One bridge; ``hosts`` hang on it by cables that can be cut."""

    def __init__(self, number: int, folder: Path) -> None:
        self.bridge, self.prefix = f"hipbr{number}", f"10.77.{number}"
        self.number, self.folder = number, folder
        self.temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: socket paths end at 107 bytes
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "180",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    @property
    def head_address(self) -> str:
        return f"{self.prefix}.1:{_PORT + self.number}"

    def __enter__(self) -> Network:
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "address", "add", f"{self.prefix}.1/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        self._start(
            "head", [], "--head", f"--port={_PORT + self.number}", f"--node-ip-address={self.prefix}.1", "--num-cpus=0",
            f"--temp-dir={self.temporary}", "--include-dashboard=false", "--object-store-memory=100000000",
            GLOO_SOCKET_IFNAME=self.bridge,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._namespaces():
            self.kill(name)
            run("ip", "netns", "del", name, check=False)
        self.kill("head")
        for driver in self.drivers:
            driver.kill()
            driver.wait()
        run("ip", "link", "del", self.bridge, check=False)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def add(self, host: int, cpus: int = 1) -> str:
        """A host ``<prefix>.<host>`` with a Ray node; returns its name."""
        name = f"hip{self.number}h{host}"
        cable = self._cable(name)
        if name not in self._namespaces():
            run("ip", "netns", "add", name)
            run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", cable, "master", self.bridge, "up")
            for action in (["link", "set", "lo", "up"], ["link", "set", "eth0", "up"]):
                run("ip", "-n", name, *action)
            run("ip", "-n", name, "address", "add", f"{self.prefix}.{host}/24", "dev", "eth0")
            run("ip", "-n", name, "route", "add", "default", "via", f"{self.prefix}.1")
        self._start(
            name, ["ip", "netns", "exec", name], f"--address={self.head_address}",
            f"--node-ip-address={self.prefix}.{host}", f"--num-cpus={cpus}", "--object-store-memory=100000000",
            GLOO_SOCKET_IFNAME="eth0",
        )  # fmt: skip
        return name

    def hosts_up(self, count: int) -> list[str]:
        """Names of ``count`` hosts with one CPU each; those that lost their Ray node get a new one."""
        names = [f"hip{self.number}h{2 + index}" for index in range(count)]
        return [name if self.processes(name) else self.add(2 + index) for index, name in enumerate(names)]

    def kill(self, name: str) -> None:
        """As when the machine loses power."""
        for pid in self._head_processes() if name == "head" else self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut(self, name: str, seconds: float) -> None:
        """Nothing goes in or out of the host for a while; its processes go on."""
        cable = self._cable(name)
        run("ip", "link", "set", cable, "down")
        time.sleep(seconds)
        run("ip", "link", "set", cable, "up")

    def processes(self, name: str) -> list[int]:
        """All processes of a host. A Ray node that the head gave up on ends when it hears of it."""
        return [int(pid) for pid in run("ip", "netns", "pids", name, check=False).split()]

    def _head_processes(self) -> list[int]:
        return [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if any(self.temporary in argument for argument in process.info["cmdline"] or [])
        ]

    def drive(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run Python with this cluster as ``RAY_ADDRESS``; the output goes to ``driver.log``."""
        environment = {**self.environment, "RAY_ADDRESS": self.head_address, "GLOO_SOCKET_IFNAME": self.bridge}
        environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        with (self.folder / "driver.log").open("ab") as log:
            self.drivers.append(subprocess.Popen([sys.executable, *arguments], env=environment, stdout=log, stderr=log))
        return self.drivers[-1]

    def log(self) -> str:
        """The end of what the driver said."""
        return (self.folder / "driver.log").read_text()[-4000:]

    def _cable(self, name: str) -> str:
        """The end of a host's cable that is on this side."""
        return f"hip{self.number}c{name.rpartition('h')[2]}"

    def _namespaces(self) -> list[str]:
        names = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]
        return [name for name in names if name.startswith(f"hip{self.number}h")]

    def _start(self, name: str, prefix: list[str], *arguments: str, **environment: str) -> None:
        command = [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
        for _ in range(_START_ATTEMPTS):  # Ray gives a node half a minute, which a busy machine may miss
            with (self.folder / f"{name}.log").open("ab") as log:
                code = subprocess.run(
                    command, env={**self.environment, **environment}, stdout=log, stderr=log, timeout=_START_SECONDS
                ).returncode
            if code == 0:
                return
            self.kill(name)
        raise RuntimeError((self.folder / f"{name}.log").read_text()[-3000:])


@contextlib.contextmanager
def network(number: int, folder: Path) -> Iterator[Network]:
    """A head without CPUs and no hosts yet; skips where namespaces cannot be made."""
    if not namespaces_work():
        pytest.skip("needs root and network namespaces (ip netns)")
    with Network(number, folder) as net:
        yield net
