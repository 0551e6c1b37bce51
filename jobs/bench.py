"""``hip bench``: run the benchmarks of one suite, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.cli import verb
from pipeline.errors import InfrastructureError, UserError, nearest

SUITES = ("model", "data", "system", "gpu", "history")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class BenchOptions:
    """Which benchmarks to run and how.

    Raises:
        UserError: an unknown suite.
    """

    suite: str = "model"
    """model, data, system or gpu; history compares the newest results with the ones before them."""
    only: str | None = None
    """One benchmark of the suite by its name, such as ``model_step``; null: all of them."""
    repeats: int | None = None
    """Timed repeats of every case; null: each benchmark's own number."""
    output: str | None = None
    """Result file, with ``only``; null: dated files under bench/results."""
    quick: bool = False
    """Tiny sizes, to see that everything runs."""
    arguments: tuple[str, ...] = ()
    """Further flags of the benchmark itself (``python -m bench.<name> --help`` shows them)."""

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise UserError(f"suite={self.suite!r} is unknown: {nearest(self.suite, SUITES)}")
        if self.output is not None and self.only is None and self.suite != "history":
            raise UserError(f"output={self.output!r} is one file; choose one benchmark with only=<name>")
        if self.repeats is not None and self.repeats < 1:
            raise UserError(f"repeats={self.repeats} must be at least 1")


def run(options: BenchOptions) -> None:
    """Run the suite's benchmarks one after the other.

    Raises:
        UserError: no such benchmark, or an installation without the benchmarks.
        InfrastructureError: a benchmark failed, or a result got worse.
    """
    names = ["history"] if options.suite == "history" else _chosen(options)
    flags = [] if options.suite == "history" else _flags(options)
    failed = [name for name in names if _run_benchmark(name, [*flags, *options.arguments])]
    if failed and options.suite == "history":
        raise InfrastructureError("figures got worse beyond the noise; the table above names them")
    if failed:
        raise InfrastructureError(f"{len(failed)} of {len(names)} benchmarks failed: {', '.join(failed)}")


def available(suite: str) -> list[str]:
    """The benchmarks of a suite: the modules ``bench/<suite>_*.py``."""
    folder = ROOT / "bench"
    if not folder.is_dir():
        raise UserError(f"the benchmarks are not part of this installation ({folder} is missing); run them in a clone")
    return sorted(path.stem for path in folder.glob(f"{suite}_*.py"))


def _chosen(options: BenchOptions) -> list[str]:
    names = available(options.suite)
    if options.only is None:
        return names
    if options.only not in names:
        raise UserError(
            f"only={options.only!r} is no benchmark of suite {options.suite}: {nearest(options.only, names)}"
        )
    return [options.only]


def _flags(options: BenchOptions) -> list[str]:
    flags = ["--quick"] if options.quick else []
    if options.repeats is not None:
        flags += ["--repeats", str(options.repeats)]
    return flags + (["--output", options.output] if options.output is not None else [])


def _run_benchmark(name: str, flags: list[str]) -> int:
    print(f"== {name}", flush=True)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    return subprocess.run([sys.executable, "-m", f"bench.{name}", *flags], env=environment, check=False).returncode


main = verb("bench", BenchOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
