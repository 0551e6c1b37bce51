"""A process with a Ray cluster of its own on this machine: two nodes for one worker each, one of which is lost."""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import psutil
from training_runs import once_at_step

from pipeline.train.runner import run_pretraining


def raylet_of(node: Any) -> psutil.Process:
    """The process that is a node to Ray."""
    [info] = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def main(folder: Path) -> None:
    """Train as ``options.pickle`` says and kill one node's raylet at step 5."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    options = pickle.loads((folder / "options.pickle").read_bytes())
    small = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    place = Path(options.storage) / options.run.name

    def lose_a_node() -> None:
        raylet_of(nodes[1]).kill()
        (folder / "lost").touch()

    once_at_step(place, 5, lose_a_node)
    run_pretraining(options)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
