"""``hip bench``: what it runs and what it refuses."""

from __future__ import annotations

import pytest

from jobs.bench import BenchOptions, available, run
from pipeline.errors import InfrastructureError, UserError


def test_the_benchmarks_of_a_suite_are_found_by_their_names() -> None:
    """``bench/<suite>_*.py``; the frame's own modules are none."""
    assert "data_shards" in available("data")
    assert available("harness") == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"suite": "modle"}, "did you mean 'model'"),
        ({"output": "x.json"}, "choose one benchmark"),
        ({"repeats": 0}, "at least 1"),
    ],
)
def test_wrong_options_name_the_way_out(wrong: dict[str, object], said: str) -> None:
    """Every mistake is answered with what would fit."""
    with pytest.raises(UserError, match=said):
        BenchOptions(**wrong)  # type: ignore[arg-type]


def test_an_unknown_benchmark_is_refused_with_the_nearest() -> None:
    """``only`` is checked against the suite."""
    with pytest.raises(UserError, match="did you mean 'data_shards'"):
        run(BenchOptions(suite="data", only="data_shard"))


def test_a_failing_benchmark_fails_the_verb(capfd: pytest.CaptureFixture[str]) -> None:
    """Its own message is shown; the verb's names the benchmark."""
    with pytest.raises(InfrastructureError, match="data_shards"):
        run(BenchOptions(suite="data", only="data_shards", arguments=("--no-such-flag",)))
    assert "unrecognized arguments" in capfd.readouterr().err
