"""What every benchmark shares: timing in turns, peak memory, the machine's description, tables, result files.

A result is JSON: ``{"benchmark", "date", "command", "environment", "notes", "rows"}``, and a row one metric of a case:
``{"case", "metric", "unit", "better", "values", "median", "low", "high"}``. ``values`` are the repeats it was taken
from, ``low`` and ``high`` their quartiles, the spread that comparisons call noise.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LOWER, HIGHER, NEITHER = "lower", "higher", "neither"
"""Which way of a metric is better; NEITHER marks facts that no comparison judges (a count, a floor)."""


@dataclass(frozen=True)
class Row:
    """One metric of one case, with every repeat; a single value is its own spread."""

    case: str
    metric: str
    unit: str
    values: tuple[float, ...]
    better: str = LOWER

    @property
    def median(self) -> float:
        """The middle of its samples."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The quartiles of the repeats; with fewer than four, their extremes."""
        if len(self.values) < 4:
            return min(self.values), max(self.values)
        low, _, high = statistics.quantiles(self.values, n=4)
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a result file."""
        low, high = self.quartiles
        return asdict(self) | {"values": list(self.values), "median": self.median, "low": low, "high": high}


@dataclass(frozen=True)
class Timing:
    """Repeats of one action, warm-up excluded; CPU seconds are user + system time of this process, all threads."""

    cpu_seconds: tuple[float, ...]
    wall_seconds: tuple[float, ...]

    def rows(self, case: str, what: str = "step") -> list[Row]:
        """CPU and wall time as rows of a table."""
        return [
            Row(case, f"{what}, CPU", "s", self.cpu_seconds),
            Row(case, f"{what}, wall", "s", self.wall_seconds),
        ]


def time_in_turns(
    actions: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1, prepare: Callable[[], Any] | None = None
) -> dict[str, Timing]:
    """Time several actions A, B, A, B, …: whatever slows the machine for a while slows all of them.

    ``prepare`` runs before every call and is not timed (fresh inputs, dropped gradients).
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for turn in range(warm_up + repeats):
        for name, action in actions.items():
            if prepare is not None:
                prepare()
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            action()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if turn >= warm_up:
                found[name].append(spent)
    return {
        name: Timing(tuple(cpu for cpu, _ in spent), tuple(wall for _, wall in spent)) for name, spent in found.items()
    }


def ratio_row(case: str, metric: str, of: Sequence[float], to: Sequence[float], better: str = LOWER) -> Row:
    """Turn by turn ratios ``of / to`` of two things timed in turns."""
    return Row(case, metric, "×", tuple(a / b for a, b in zip(of, to, strict=True)), better)


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Within the block, the process's peak resident memory above its start; the list holds it, in MiB, afterwards.

    Linux with glibc only. For a figure to publish, run the case in a process of its own (``in_fresh_process``).
    """
    gc.collect()
    # What the allocator kept of freed memory would be used again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    start = _status_mib("VmRSS")
    peak: list[float] = []
    yield peak
    peak.append(_status_mib("VmHWM") - start)


def in_fresh_process(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """``python -m module arguments…`` in a new process; its last line of output is JSON, returned.

    Raises:
        RuntimeError: the process failed; with the end of its output.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """The machine, the versions and the load that a figure belongs to."""
    versions = {}
    for name in ("torch", "numpy", *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": _device(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "code_version": _code_version(),
        "load_average": os.getloadavg()[0],
    }


@dataclass
class Report:
    """Rows of one benchmark as they are measured, then a table and a file."""

    benchmark: str
    packages: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *rows: Row) -> None:
        """Keep rows, and print each as it comes: a long benchmark that dies has said something."""
        for row in rows:
            self.rows.append(row)
            low, high = row.quartiles
            print(
                f"  {row.case}: {row.metric} {_short(row.median)} {row.unit} [{_short(low)}, {_short(high)}]",
                flush=True,
            )

    def note(self, text: str) -> None:
        """A sentence that belongs to the figures: what was not run and why, an arithmetic limit."""
        self.notes.append(text)
        print(f"  note: {text}", flush=True)

    def finish(self, output: str | None) -> Path:
        """Print the table and write the file; ``output`` None: a dated one under ``bench/results``."""
        date = datetime.datetime.now(datetime.UTC)
        path = Path(output) if output else RESULTS / f"{self.benchmark}-{date:%Y%m%dT%H%M}.json"
        content = {
            "benchmark": self.benchmark,
            "date": date.isoformat(timespec="seconds"),
            "command": shlex.join([Path(sys.executable).name, *_command()]),
            "environment": environment(self.packages),
            "notes": self.notes,
            "rows": [row.to_dict() for row in self.rows],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".part") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
        print(f"\n{table(self.rows)}\n\nwrote {path}")
        return path


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table of medians with their quartiles: cases down and metrics across, or what is narrower."""
    metrics = list(dict.fromkeys(_title(row) for row in rows))
    cases = list(dict.fromkeys(row.case for row in rows))
    cells = {(row.case, _title(row)): _cell(row) for row in rows}
    lines = [["case", *metrics], *([case, *(cells.get((case, title), "") for title in metrics)] for case in cases)]
    if len(metrics) > max(6, len(cases)):
        lines = [list(line) for line in zip(*lines, strict=True)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def arguments_parser(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """The flags every benchmark has: ``--output``, ``--repeats``, ``--quick`` (a size that a test can afford)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=None, help="the result file; default: a dated one under bench/results")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    return parser


def _title(row: Row) -> str:
    return f"{row.metric} ({row.unit})" if row.unit else row.metric


def _cell(row: Row) -> str:
    low, high = row.quartiles
    spread = f" [{_short(low)}, {_short(high)}]" if len(row.values) > 1 and _short(low) != _short(high) else ""
    return _short(row.median) + spread


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _command() -> list[str]:
    """The command line as a reader would type it."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", main.name, *sys.argv[1:]] if main is not None else sys.argv


def _status_mib(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}: peak memory is measured on Linux only")


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _instructions() -> str:
    """The widest that torch uses; a virtual machine hides the processor's model but not these."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _code_version() -> str:
    """The commit, with ``+`` where the work tree differs from it."""
    folder = Path(__file__).parents[1]
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=folder, capture_output=True, check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+" if changed.returncode else "")
