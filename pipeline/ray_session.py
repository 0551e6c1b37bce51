"""Start Ray on this machine, or join the cluster that the options name; a Ray that already runs is used as it is."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.errors import InfrastructureError, UserError
from pipeline.interrupts import terminate_unchanged


@dataclass(frozen=True)
class RayOptions:
    """Where Ray runs."""

    address: str | None = None  # cluster to join; null: RAY_ADDRESS when set, else a Ray of our own on this machine
    num_cpus: int | None = None  # logical CPUs of our own Ray; null: those of the machine, at least 2
    object_store_gib: float = 0.5  # shared memory of our own Ray; tokens do not travel through it

    def __post_init__(self) -> None:
        if self.num_cpus is not None and self.num_cpus < 1:
            raise UserError(f"ray.num_cpus={self.num_cpus}: at least 1")
        if self.object_store_gib < 0.1:
            raise UserError(f"ray.object_store_gib={self.object_store_gib}: at least 0.1")


@contextmanager
def ray_session(options: RayOptions | None = None) -> Iterator[None]:
    """Ray for the time of the block; only a Ray that this started is shut down again.

    Raises:
        InfrastructureError: the cluster cannot be reached, or Ray does not start.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    options = options or RayOptions()
    with terminate_unchanged():
        folder = _start(options)
    try:
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _start(options: RayOptions) -> str | None:
    """Start or join Ray; the temporary folder of a Ray of our own."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # report() waits for this poll
    address = options.address or os.environ.get("RAY_ADDRESS")
    try:
        if address and address != "local":
            ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
            return None
        # Ray's own token file would be shared with other clusters of this user; this one listens on loopback only.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        return _start_here(options)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        # What Ray says where a token is missing is that the cluster cannot be reached.
        has_token = not address or os.environ.get("RAY_AUTH_MODE") == "token"
        token = "" if has_token else " (with a token: export RAY_AUTH_MODE=token, and have it in ~/.ray/auth_token)"
        raise InfrastructureError(
            f"could not {where}: {error}; check it with `ray status`{token} and run the command again"
        ) from error


def _start_here(options: RayOptions, attempts: int = 2) -> str:
    """A Ray of our own, tried twice: on a busy machine its processes may miss the half minute that it gives them."""
    import ray

    # Nobody takes this machine away by notice; the process that would wait for it needs seconds of CPU at every start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # A folder of its own, short: socket paths end at 107 bytes, and a stale address file there misleads ray.init.
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    try:
        ray.init(
            address="local",
            num_cpus=options.num_cpus or max(2, os.cpu_count() or 2),
            object_store_memory=int(options.object_store_gib * 2**30),
            include_dashboard=True,  # without it, stopped trials keep their placement groups
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=folder,
        )
    except Exception as error:  # a start that times out is a bare Exception
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        if attempts == 1:
            raise RuntimeError(str(error)) from error
        return _start_here(options, attempts - 1)
    return folder
