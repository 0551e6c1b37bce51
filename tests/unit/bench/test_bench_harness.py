"""The frame of the benchmarks: what a result holds, and when a change counts as a regression."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import history
from bench.harness import HIGHER, NEITHER, Report, Row, peak_memory, ratio_row, table, time_in_turns


def test_actions_take_turns_and_the_warm_up_is_left_out() -> None:
    """A, B, A, B, …, each prepared, with the first round not in the result."""
    seen: list[str] = []
    actions = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    found = time_in_turns(actions, repeats=2, warm_up=1, prepare=lambda: seen.append("-"))
    assert "".join(seen) == "-a-b-a-b-a-b"
    assert len(found["a"].cpu_seconds) == len(found["b"].wall_seconds) == 2


def test_peak_memory_sees_what_was_freed_again() -> None:
    """64 MiB that exist only inside the block are counted, to within the allocator's habits."""
    with peak_memory() as peak:
        np.ones(8 * 2**20).sum()
    assert 60 < peak[0] < 120


def test_a_result_file_says_what_it_is_of(tmp_path: Path) -> None:
    """Hardware, versions, command, date, spread and every repeat are in the file; the table is printed."""
    report = Report("example")
    report.add(Row("case", "time", "s", (1.0, 2.0, 4.0)))
    report.note("nothing else was run")
    path = report.finish(str(tmp_path / "results" / "example.json"))
    content = json.loads(path.read_text())
    assert content["benchmark"] == "example"
    assert content["notes"] == ["nothing else was run"]
    assert {"processor", "instructions", "cores", "memory_gib", "versions", "python", "code_version"} <= set(
        content["environment"]
    )
    assert content["command"]
    assert content["date"].startswith("20")
    row = content["rows"][0]
    assert (row["median"], row["low"], row["high"], row["values"]) == (2.0, 1.0, 4.0, [1.0, 2.0, 4.0])
    assert not list(tmp_path.glob("results/*.part"))


def test_table_has_a_line_per_case_and_a_column_per_metric() -> None:
    """Absent cells are empty, spreads stand beside medians."""
    text = table([Row("a", "time", "s", (1.0, 2.0, 3.0)), ratio_row("b", "to peer", [1.0, 1.0], [2.0, 2.0])])
    lines = text.splitlines()
    assert len(lines) == 4
    assert "2 [1, 3]" in lines[2]
    assert "0.5" in lines[3]


def _result(path: Path, date: str, rows: list[Row], processor: str = "one", instructions: str = "AVX2") -> Path:
    content = {
        "benchmark": "example",
        "date": date,
        "environment": {"processor": processor, "instructions": instructions, "cores_allowed": 1, "device": "cpu"},
        "rows": [row.to_dict() for row in rows],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("before", "after", "better", "verdict"),
    [
        ((1.0, 1.01, 1.02), (1.2, 1.21, 1.22), "lower", "worse"),
        ((1.0, 1.01, 1.02), (1.2, 1.21, 1.22), HIGHER, "better"),
        ((1.0, 1.01, 1.3), (1.2, 1.21, 1.22), "lower", "noise"),  # the quartiles meet
        ((1.0, 1.01, 1.02), (1.03, 1.04, 1.05), "lower", "noise"),  # within the forgiven 5 %
        ((1.0, 1.01, 1.02), (1.2, 1.21, 1.22), NEITHER, "not judged"),
    ],
)
def test_a_change_counts_beyond_the_noise_only(
    tmp_path: Path, before: tuple[float, ...], after: tuple[float, ...], better: str, verdict: str
) -> None:
    """The way the metric points, the forgiven share and the spread of both results decide; exit code 1 for worse."""
    old = _result(tmp_path / "old.json", "2026-01-01", [Row("case", "time", "s", before, better)])
    new = _result(tmp_path / "new.json", "2026-01-02", [Row("case", "time", "s", after, better)])
    changes = history.compare(json.loads(old.read_text()), json.loads(new.read_text()), 5.0)
    assert [change.verdict for change in changes] == [verdict]
    assert history.main([str(old), str(new)]) == int(verdict == "worse")


def test_times_of_another_machine_are_not_judged_but_ratios_are(tmp_path: Path) -> None:
    """A slower processor is no regression; a worse ratio is one on any of its kind."""
    slow = [Row("case", "time", "s", (2.0,)), Row("case", "to peer", "×", (0.9,))]
    fast = [Row("case", "time", "s", (1.0,)), Row("case", "to peer", "×", (0.5,))]
    old = json.loads(_result(tmp_path / "old.json", "2026-01-01", fast).read_text())
    new = json.loads(_result(tmp_path / "new.json", "2026-01-02", slow, "another").read_text())
    assert [change.verdict for change in history.compare(old, new, 5.0)] == ["not judged", "worse"]


def test_ratios_of_another_instruction_set_are_not_judged(tmp_path: Path) -> None:
    """HiP-Mini takes 0.28 of the original's time with AVX-512 and 0.37 with AVX2, by the same code."""
    old = _result(tmp_path / "old.json", "2026-01-01", [Row("case", "to peer", "×", (0.28,))], instructions="AVX512")
    new = _result(tmp_path / "new.json", "2026-01-02", [Row("case", "to peer", "×", (0.37,))], instructions="AVX2")
    changes = history.compare(json.loads(old.read_text()), json.loads(new.read_text()), 5.0)
    assert [change.verdict for change in changes] == ["not judged"]


def test_history_prefers_an_earlier_result_of_the_same_machine(tmp_path: Path) -> None:
    rows = [Row("case", "time", "s", (1.0,))]
    first = _result(tmp_path / "first.json", "2026-01-01", rows)
    _result(tmp_path / "second.json", "2026-01-02", rows, "another")
    third = _result(tmp_path / "third.json", "2026-01-03", rows)
    assert history.newest_pairs(tmp_path) == [(first, third)]


def test_history_takes_the_two_newest_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Older ones do not count, one result alone is nothing to compare."""
    _result(tmp_path / "c.json", "2026-01-01", [Row("case", "time", "s", (9.0,))])
    assert history.main(["--folder", str(tmp_path)]) == 0
    assert "nothing to compare" in capsys.readouterr().out
    _result(tmp_path / "b.json", "2026-01-02", [Row("case", "time", "s", (1.0,))])
    _result(tmp_path / "a.json", "2026-01-03", [Row("case", "time", "s", (2.0,))])
    assert history.main(["--folder", str(tmp_path)]) == 1
    assert "| worse | case | time (s) | 1 | 2 | +100.0 % |" in capsys.readouterr().out
