"""Two trials under a Ray that allows this machine 2 GiB more than it uses now; one of them wants more."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import psutil

_STEP_BYTES = 256 << 20


def main() -> None:
    memory = psutil.virtual_memory()
    threshold = 1 - (memory.available - (2 << 30)) / memory.total
    import numpy as np
    import ray
    from ray import tune

    from pipeline.tune.memory import kills_as_crashes, tells_of_memory

    class Greedy(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.size, self.taken = config["size"], []

        def step(self) -> dict[str, Any]:
            for _ in range(self.size):
                self.taken.append(np.ones(_STEP_BYTES, np.uint8))
                time.sleep(0.1)
            return {"score": 1.0, "done": True}

    ray.init(
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        _system_config={"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 50},
    )
    with tempfile.TemporaryDirectory() as folder, kills_as_crashes():
        tuner = tune.Tuner(
            Greedy,
            param_space={"size": tune.grid_search([40, 1])},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        by_size = {result.config["size"]: result for result in tuner.fit()}
    ray.shutdown()
    print(f"small: {by_size[1].metrics['score']}")
    print(f"large: {'out of memory' if tells_of_memory(str(by_size[40].error)) else by_size[40].error}")


if __name__ == "__main__":
    main()
