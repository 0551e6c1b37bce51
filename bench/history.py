"""The change between two results of a benchmark; fails where one got worse beyond the noise.

    python -m bench.history                          # the newest result of every benchmark and one before it
    python -m bench.history BEFORE.json AFTER.json
    python -m bench.history --fail-above 10          # per cent that is forgiven in any case

A row got worse when its median moved the wrong way by more than ``--fail-above`` per cent and its quartiles do not meet
the other result's. Times of different machines are shown, not judged; ratios are judged between machines of
one instruction set.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import HIGHER, NEITHER, RESULTS

MACHINE = ("processor", "instructions", "cores_allowed", "device")


@dataclass(frozen=True)
class Change:
    """One row in two results; ``percent`` is of the median."""

    case: str
    metric: str
    unit: str
    before: float
    after: float
    verdict: str

    @property
    def percent(self) -> float:
        """How far the second result's median is from the first's."""
        return (self.after / self.before - 1) * 100 if self.before else 0.0


def compare(before: Mapping[str, Any], after: Mapping[str, Any], forgiven_percent: float) -> list[Change]:
    """The rows both results have, each with a verdict: ``worse``, ``better``, ``noise`` or ``not judged``."""
    old = {(row["case"], row["metric"]): row for row in before["rows"]}
    same_machine = _machine(before) == _machine(after)
    # AVX-512 or AVX2 moves ratios too: both sides do not gain alike from it.
    same_kind = before["environment"].get("instructions") == after["environment"].get("instructions")
    changes = []
    for row in after["rows"]:
        known = old.get((row["case"], row["metric"]))
        if known is None:
            continue
        is_judged = same_machine or (same_kind and row["unit"] == "×")
        verdict = _verdict(known, row, forgiven_percent) if is_judged else "not judged"
        changes.append(Change(row["case"], row["metric"], row["unit"], known["median"], row["median"], verdict))
    return changes


def _machine(result: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(result["environment"].get(key) for key in MACHINE)


def _verdict(old: Mapping[str, Any], new: Mapping[str, Any], forgiven_percent: float) -> str:
    if new["better"] == NEITHER:
        return "not judged"
    grew = new["median"] > old["median"]
    limit = abs(old["median"]) * forgiven_percent / 100
    apart = new["low"] > old["high"] or new["high"] < old["low"]
    if abs(new["median"] - old["median"]) <= limit or not apart:
        return "noise"
    return "better" if grew == (new["better"] == HIGHER) else "worse"


def newest_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """For every benchmark with two results or more, the newest with the one before it, older first.

    The one before is of the same machine, where there is such a one.
    """
    dated: dict[str, list[tuple[str, Path, tuple[Any, ...]]]] = {}
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        if "benchmark" in content:
            dated.setdefault(content["benchmark"], []).append((content["date"], path, _machine(content)))
    pairs = []
    for _, found in sorted(dated.items()):
        *earlier, (_, newest, machine) = sorted(found, key=lambda result: result[:2])
        alike = [path for _, path, its_machine in earlier if its_machine == machine]
        if earlier:
            pairs.append((alike[-1] if alike else earlier[-1][1], newest))
    return pairs


def show(changes: Sequence[Change]) -> str:
    """The changes as a table, the worst first."""
    order = ("worse", "better", "noise", "not judged")
    lines = ["| verdict | case | metric | before | after | change |", "|---|---|---|---|---|---|"]
    for change in sorted(changes, key=lambda change: (order.index(change.verdict), -abs(change.percent))):
        lines.append(
            f"| {change.verdict} | {change.case} | {change.metric} ({change.unit}) "
            f"| {change.before:.4g} | {change.after:.4g} | {change.percent:+.1f} % |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print every comparison; 1 where anything got worse, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="two results; default: the newest pairs")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--fail-above", type=float, default=5.0, metavar="PERCENT")
    arguments = parser.parse_args(argv)
    if len(arguments.results) not in (0, 2):
        parser.error(f"give two results or none, got {len(arguments.results)}")
    pairs = [tuple(arguments.results)] if arguments.results else newest_pairs(arguments.folder)
    if not pairs:
        print(f"no benchmark has two results in {arguments.folder}: nothing to compare")
    failed = 0
    for before, after in pairs:
        changes = compare(json.loads(before.read_text()), json.loads(after.read_text()), arguments.fail_above)
        failed += sum(change.verdict == "worse" for change in changes)
        print(f"{before} → {after}\n\n{show(changes)}\n")
    if failed:
        print(f"{failed} figures got worse beyond the noise", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
