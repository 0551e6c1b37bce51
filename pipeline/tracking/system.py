"""Samples of this process and machine, under the names that MLflow's system-metrics page shows."""

from __future__ import annotations

import psutil

_process = psutil.Process()


def sample() -> dict[str, float]:
    """Processor use since the last call (percent) and memory in use (megabytes, percent)."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": _process.memory_info().rss / 1e6,
    }
