"""A process with a Ray cluster of its own on this machine: two nodes for one worker each, one of which is lost.

``kill``: without a word. ``drain``: as a cloud does it, with a notice and a deadline.
"""

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
from training_runs import once_at_step

from pipeline.train.runner import run_pretraining

_NOTICE_SECONDS = 25


def raylet_of(node: Any) -> psutil.Process:
    """The process that is a node to Ray."""
    [info] = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def kill(node: Any) -> None:
    """A machine that is gone takes its workers with it: left alive, they may be done before Ray misses their raylet."""
    raylet = raylet_of(node)
    workers = raylet.children(recursive=True)
    raylet.kill()
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


def drain(node: Any) -> None:
    """Tell Ray that the node will be taken away soon, and then take it away.

    Ray ends a drained node by itself only once it is idle, which an object that it holds prevents for ever.
    """
    command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", node.gcs_address]
    command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot instance", "--deadline-remaining-seconds", str(_NOTICE_SECONDS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    raylet = raylet_of(node)  # psutil knows by its start time that a process is gone

    def take_away() -> None:
        if raylet.is_running():
            raylet.kill()

    timer = threading.Timer(_NOTICE_SECONDS, take_away)
    timer.daemon = True
    timer.start()


def main(folder: Path, way: str) -> None:
    """Train as ``options.pickle`` says and lose one node soon after the start."""
    import ray
    from ray.cluster_utils import Cluster

    logging.basicConfig(level=logging.INFO)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    options = pickle.loads((folder / "options.pickle").read_bytes())
    small = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    place = Path(options.storage) / options.run.name

    def lose_a_node() -> None:
        kill(nodes[1]) if way == "kill" else drain(nodes[1])
        (folder / "lost").touch()

    once_at_step(place, 5 if way == "kill" else 0, lose_a_node)
    run_pretraining(options)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
