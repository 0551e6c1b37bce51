"""Who owns which groups: the worked examples of the specification, all golden cases, and the moves between levels."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hip_model import ConfigError, Modality
from hip_model.grouping import GroupPlan, plan_groups, plan_single_group, regroup
from hip_model.kernels.naive import naive_group, naive_ungroup

_SHARED = Path(os.environ.get("HIP_SHARED", Path(__file__).resolve().parents[4] / "shared"))
_CASES = _SHARED / "reference" / "goldens" / "grouping_cases.json"


def plan_for(num_groups: int, tokens: list[int]) -> GroupPlan:
    return plan_groups(num_groups, [Modality(f"m{index}", count, 1) for index, count in enumerate(tokens)])


@pytest.mark.parametrize(
    ("num_groups", "tokens", "groups", "length", "final", "per_group"),
    [
        (16, [784, 517], [10, 6], 87, [6, 5], [8, 0]),
        (16, [50176], [16], 3136, [0], [0]),
        (256, [50176], [256], 196, [0], [0]),
        (6, [101, 64, 7], [3, 2, 1], 34, [1, 0, 0], [0, 2, 27]),
        (16, [50176, 1], [15, 1], 3346, [14, 0], [0, 3345]),
        (5, [10, 10, 10], [2, 2, 1], 10, [0, 0, 0], [5, 5, 0]),
        (4, [5], [4], 2, [3], [0]),
        (256, [802816, 61440], [237, 19], 3388, [140, 6], [0, 154]),
    ],
)
def test_worked_examples(
    num_groups: int, tokens: list[int], groups: list[int], length: int, final: list[int], per_group: list[int]
) -> None:
    _check(plan_for(num_groups, tokens), groups, length, final, per_group)


@pytest.mark.skipif(not _CASES.is_file(), reason="the golden files are not at hand")
def test_all_golden_cases_and_error_cases() -> None:
    golden = json.loads(_CASES.read_text())
    assert len(golden["cases"]) == 50
    for case in golden["cases"]:
        plan = plan_for(case["num_groups"], case["tokens"])
        _check(plan, *(case[k] for k in ("groups_per_modality", "group_length", "final_padding", "per_group_padding")))
    for case in golden["error_cases"]:
        with pytest.raises(ConfigError):
            plan_for(case["num_groups"], case["tokens"])


def _check(plan: GroupPlan, groups: list[int], length: int, final: list[int], per_group: list[int]) -> None:
    assert [part.groups for part in plan.modalities] == groups
    assert plan.group_length == length
    assert [part.final_padding for part in plan.modalities] == final
    assert [part.group_padding for part in plan.modalities] == per_group
    assert [part.offset for part in plan.modalities] == [sum(groups[:index]) for index in range(len(groups))]


def test_more_modalities_than_groups_says_how_many_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"2 groups for 3 modalities .*num_groups\[0\] >= 3"):
        plan_for(2, [3, 3, 3])


@given(tokens=st.lists(st.integers(1, 500), min_size=1, max_size=4), extra=st.integers(0, 20))
def test_every_token_has_one_slot_and_comes_back(tokens: list[int], extra: int) -> None:
    plan = plan_for(len(tokens) + extra, tokens)
    assert sum(part.groups for part in plan.modalities) == plan.num_groups
    for part in plan.modalities:
        assert sum(part.tokens_in_group(group) for group in range(part.groups)) == part.num_tokens
        assert part.group_tokens + part.group_padding == plan.group_length
    arrays = {part.name: torch.arange(part.num_tokens).view(1, -1, 1) + 1 for part in plan.modalities}
    grouped = naive_group(arrays, plan)
    assert grouped.shape == (1, plan.num_groups, plan.group_length, 1)
    back = naive_ungroup(grouped, plan)
    assert all(torch.equal(back[name], values) for name, values in arrays.items())


def test_reshape_joins_neighbours_and_transpose_reshape_takes_from_all_groups() -> None:
    latents = torch.arange(8).view(1, 4, 2, 1)
    assert regroup(latents, 2, "reshape").flatten(2).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert regroup(latents, 2, "transpose_reshape").flatten(2).tolist() == [[[0, 2, 4, 6], [1, 3, 5, 7]]]
    assert regroup(latents, 8, "reshape").shape == (1, 8, 1, 1)


def test_a_single_group_counts_each_modality_as_a_group_of_its_own() -> None:
    plan = plan_single_group([Modality("image", 6, 3), Modality("audio", 4, 1)])
    assert plan.group_length == 10
    assert [(part.groups, part.group_tokens, part.final_padding) for part in plan.modalities] == [(1, 6, 0), (1, 4, 0)]
    assert plan["audio"].num_tokens == 4
    with pytest.raises(KeyError):
        plan["video"]
