"""The model benchmarks measure what they say: rows, fits, and forms that agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import model_head, model_step
from bench.cases import SIZES, build_case, modalities_of, tokens_of
from jobs.bench import BenchOptions, available, run


def test_sizes_are_what_they_are_called() -> None:
    """The largest image has 4.19 M tokens, the audio + video example 524,288."""
    assert tokens_of("2048") == 4_194_304
    assert tokens_of("av") == 524_288
    assert [modality.name for modality in modalities_of("av")] == ["video", "audio"]
    assert set(SIZES) >= {"64", "224", "512", "1024", "2048", "av"}


def test_a_measured_step_has_time_memory_use_and_shares() -> None:
    """Every mode is timed, the twin agrees, shares of the forward pass make a whole."""
    found = model_step.measure("hip_nano", "16", 2, 1, 1, ("forward", "full", "masked"))
    assert set(found["cpu"]) == {"forward", "full", "masked", "naive"}
    assert found["difference"] < 1e-4
    assert sum(found["shares"].values()) == pytest.approx(100)
    assert found["flops"]["full"] == 3 * found["flops"]["forward"] > found["flops"]["masked"]
    rows = {row.metric: row for row in model_step.rows_of("hip_nano", "16", found)}
    assert {"full, CPU", "masked, wall", "full, memory above the model", "masked ÷ full, CPU"} <= set(rows)
    assert len(rows["full, CPU"].values) == 2


def test_a_straight_line_is_found_through_the_sizes() -> None:
    """a = 2 s and b = 3 µs a token come out again, with no misfit."""
    found = {
        size: {"cpu": {"full": [2 + 3e-6 * tokens_of(size)]}, "memory": {"full": 10 + tokens_of(size) / 2**20}}
        for size in ("224", "512", "1024")
    }
    rows = {row.metric: row.median for row in model_step.straight_lines("hip_16", found)}
    assert rows["full, cpu: a"] == pytest.approx(2)
    assert rows["full, cpu: b per token"] == pytest.approx(3)
    assert rows["full, memory: b per token"] == pytest.approx(1)
    assert rows["full, cpu: largest misfit"] == pytest.approx(0, abs=1e-6)


def test_every_turn_has_inputs_of_its_own() -> None:
    """Fresh values, no gradients left."""
    case = build_case("hip_nano", "8")
    first = case.inputs["image"]
    case.full()
    case.renew()
    assert not first.equal(case.inputs["image"])
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_the_forms_of_the_heads_attention_agree(tmp_path: Path) -> None:
    """The benchmark itself fails where they do not; as the verb runs it, in a process of its own."""
    assert "model_step" in available("model")
    assert {"naive", "materialised", "fused"} == set(model_head.FORMS)
    output = tmp_path / "head.json"
    run(BenchOptions(suite="model", only="model_head", quick=True, output=str(output)))
    assert output.exists()
