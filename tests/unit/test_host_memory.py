"""Memory that a step freed is there for the next one, unless the user says otherwise."""

import subprocess
import sys

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    kept, faults = faults_of_the_last_step({})
    assert (kept, faults < 100) == (1, True)
    kept, faults = faults_of_the_last_step({"MALLOC_MMAP_THRESHOLD_": "1048576"})
    assert (kept, faults > 10_000) == (0, True)


def faults_of_the_last_step(variables: dict[str, str]) -> tuple[int, int]:
    """Whether memory is kept, and the page faults of four times 80 MB made anew, in a process of its own."""
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-c", COUNT_FAULTS]
    kept, faults = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(kept), int(faults)
