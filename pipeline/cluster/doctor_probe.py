"""What one machine says about itself, as plain values; nothing is judged here.

Ray sends this module, ``doctor_tracking`` and ``artifact_probe`` to the nodes by value, so that a node without this
package can be looked at too: on top they import only the standard library.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.cluster.doctor_tracking import probe_tracking

PACKAGES = ("hip-pipeline", "ray", "torch", "deepspeed", "mlflow", "pyarrow", "av", "numpy")
_DECODED_FRAMES = 120
_DECODED_SIDE = 256

Facts = dict[str, Any]


def probe_machine(storage: str | None, shards: str | None, token: str | None) -> Facts:
    """Everything that the checks want to know about this machine.

    Args:
        storage: where runs live; a small file is written, read and deleted there.
        shards: a dataset whose manifest is read.
        token: name of a file that another machine wrote into ``storage``: is it seen from here?
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": os.cpu_count() or 1,
        "memory": _memory(),
        "shared_memory": _usage("/dev/shm"),
        "temporary": {"path": tempfile.gettempdir(), **_usage(tempfile.gettempdir())},
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "devices": _attempt(_devices),
        "storage": _attempt(lambda: _storage(storage, token)) if storage else {},
        "shards": _attempt(lambda: _dataset(shards)) if shards else {},
        "decode": _attempt(_decode),
    }


def _attempt(action: Callable[[], Facts]) -> Facts:
    """The facts, or what went wrong on the way to them."""
    try:
        return action()
    except ImportError as error:
        return {"error": f"{error.name or error} cannot be imported", "missing": error.name or str(error)}
    except Exception as error:  # whatever a broken machine raises is a finding
        return {"error": f"{type(error).__name__}: {error}"[:400]}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _usage(folder: str) -> dict[str, int]:
    try:
        found = shutil.disk_usage(folder)
    except OSError:
        return {"total": 0, "free": 0}
    return {"total": found.total, "free": found.free}


def _memory() -> dict[str, int]:
    """Bytes of the machine, or of the container when that has a limit."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    total = int(lines["MemTotal"].split()[0]) * 1024
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        folder = Path("/sys/fs/cgroup")
        if (folder / limit_file).exists():
            text = (folder / limit_file).read_text().strip()
            if text != "max" and int(text) < total:
                total = int(text)
                free = min(free, total - int((folder / used_file).read_text()))
            break
    return {"total": total, "free": free}


def _devices() -> Facts:
    """GPUs by the driver and by torch: they differ when torch is a CPU build or the driver is too old."""
    nodes = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    driver = ""
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
        driver = (answer.stdout.splitlines() or [""])[0].strip()
    import torch

    usable = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if usable else []
    return {"nodes": nodes, "driver": driver, "names": names, "cuda_build": torch.version.cuda}


def _storage(location: str, token: str | None) -> Facts:
    """Write, read and delete a small file; look for the other machine's."""
    from pipeline.storage import exists, is_local, join, local_path, read_bytes, resolve, write_atomic

    folder = location
    if is_local(location):  # a folder that is not there yet is not made by looking
        path_here = local_path(location)
        folder = str(next(parent for parent in (path_here, *path_here.parents) if parent.exists()))
    place = join(folder, f".hip-doctor-{uuid.uuid4().hex[:8]}")
    content = os.urandom(1 << 20)
    began = time.perf_counter()
    write_atomic(place, content)
    written = time.perf_counter()
    same = read_bytes(place) == content
    read = time.perf_counter()
    system, path = resolve(place)
    system.delete_file(path)
    return {
        "same": same,
        "write_seconds": written - began,
        "read_seconds": read - written,
        "local": is_local(location),
        "disk": _usage(folder) if is_local(location) else {},
        "token_seen": exists(join(location, token)) if token else None,
    }


def _dataset(location: str | None) -> Facts:
    """Read the manifest of a dataset."""
    from pipeline.shards.manifest import Manifest

    assert location is not None
    began = time.perf_counter()
    manifest = Manifest.load(location)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "fingerprint": manifest.fingerprint, "examples": manifest.num_examples()}


def _decode() -> Facts:
    """Encode a short clip with the codecs of the demo, decode it on one core."""
    import av
    import numpy

    with tempfile.TemporaryDirectory(prefix="hip-doctor-") as folder:
        clip = str(Path(folder) / "clip.mp4")
        picture = numpy.random.default_rng(0).integers(0, 256, (_DECODED_SIDE, _DECODED_SIDE, 3), dtype=numpy.uint8)
        with av.open(clip, "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
            stream.width = stream.height = _DECODED_SIDE
            for index in range(_DECODED_FRAMES):
                frame = av.VideoFrame.from_ndarray(numpy.roll(picture, index * 4, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        began = time.perf_counter()
        with av.open(clip) as container:
            container.streams.video[0].thread_count = 1
            frames = sum(1 for _ in container.decode(video=0))
        seconds = time.perf_counter() - began
    return {"frames": frames, "wanted": _DECODED_FRAMES, "frames_per_second": frames / seconds}


class Probe:
    """A Ray actor on the node that is looked at."""

    def facts(self, storage: str | None, shards: str | None, token: str | None) -> Facts:
        """As ``probe_machine``."""
        return probe_machine(storage, shards, token)

    def tracking(self, uri: str, experiment: str, timeout_seconds: float) -> Facts:
        """As ``probe_tracking``."""
        return probe_tracking(uri, experiment, timeout_seconds)

    def clock(self) -> float:
        """Seconds since 1970 by this machine's clock."""
        return time.time()
