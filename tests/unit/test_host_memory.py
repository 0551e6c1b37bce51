"""Memory that a step freed is there for the next one, unless the user says otherwise."""

import subprocess
import sys

import pytest

from pipeline.host_memory import environment_of_cpu_workers

COUNT_FAULTS = """
import resource
import torch
from pipeline.host_memory import keep_freed_memory
kept = keep_freed_memory()
for step in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(20_000_000).add_(1)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


KEEP_SMALL_THINGS_BETWEEN_BUFFERS = """
import resource
import torch
from pipeline.host_memory import keep_freed_memory
kept = keep_freed_memory()
small, before = [torch.ones(8)], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for step in range(100):
    buffers = [torch.ones(500_000) for _ in range(4)]  # 2 MB each, freed at the end of a step
    small += [torch.ones(8) for _ in range(40)]
print(int(kept), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""

glibc_only = pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")


@glibc_only
def test_freed_memory_is_used_again_without_page_faults() -> None:
    kept, faults = numbers_of(COUNT_FAULTS, {})
    assert (kept, faults < 100) == (1, True)
    kept, faults = numbers_of(COUNT_FAULTS, {"MALLOC_MMAP_THRESHOLD_": "1048576"})
    assert (kept, faults > 10_000) == (0, True)


def numbers_of(program: str, variables: dict[str, str]) -> tuple[int, int]:
    """Whether memory is kept, and the page faults or MiB that a process of its own prints."""
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-c", program]
    kept, number = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(kept), int(number)


@glibc_only
def test_a_worker_uses_freed_buffers_again_beside_small_things_that_live_longer() -> None:
    kept, grown_mib = numbers_of(KEEP_SMALL_THINGS_BETWEEN_BUFFERS, environment_of_cpu_workers())
    assert (kept, grown_mib < 60) == (1, True)  # 8 at a time; 730 with glibc 2.36 as it is


def test_who_sets_glibc_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_of_cpu_workers() == {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert environment_of_cpu_workers() == {}
