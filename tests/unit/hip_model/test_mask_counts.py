"""How many tokens are asked back is known, mostly without drawing them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hip_model.grouping import plan_groups
from hip_model.mask_counts import count_queries, has_equal_counts
from hip_model.masking import MASK_POLICIES, MaskConfig, mask_seeds, sample_selection
from hip_model.modality import Modality

BATCH = 6
RATIOS = st.sampled_from([0.0, 0.1, 0.5, 0.85, 1.0])


@settings(max_examples=300, deadline=None)
@given(
    policy=st.sampled_from(MASK_POLICIES),
    sides=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    samples=st.integers(1, 40),
    groups=st.integers(2, 9),
    ratios=st.fixed_dictionaries({}, optional={"video": RATIOS, "audio": RATIOS}),
    query_all=st.booleans(),
    absent=st.one_of(st.none(), st.lists(st.integers(0, BATCH - 1), max_size=BATCH)),
    seed=st.integers(0, 99),
)
def test_counts_are_those_of_the_drawn_selection(policy, sides, samples, groups, ratios, query_all, absent, seed):
    frames, height, width = sides
    modalities = (Modality("video", frames * height * width, 3, sides), Modality("audio", samples, 1, (samples,)))
    config = MaskConfig(policy, 0.7, ratios)
    if all(config.ratio_of(modality.name) == 1 for modality in modalities):
        return
    if policy == "modality" and any(config.ratio_of(modality.name) == 1 for modality in modalities):
        return
    plan = plan_groups(groups, modalities)
    seeds = mask_seeds(seed, torch.zeros(BATCH, dtype=torch.int64), torch.arange(BATCH))
    present = None
    if absent is not None:
        is_there = torch.ones(BATCH, dtype=torch.bool)
        is_there[absent] = False
        present = {"video": torch.ones(BATCH, dtype=torch.bool), "audio": is_there}
    scores = {item.name: torch.rand(BATCH, item.groups, item.group_tokens) for item in plan.modalities}
    selection = sample_selection(config, modalities, plan, seeds, query_all, present, scores)
    counted = count_queries(config, modalities, plan, seeds, query_all, present)
    for modality in modalities:
        asked = selection.queries[modality.name].expand(BATCH, plan[modality.name].groups, -1)
        drawn = (asked >= 0).sum(dim=(1, 2))
        assert counted[modality.name].tolist() == drawn.tolist()
        if has_equal_counts(config, modalities, plan, query_all):
            there = drawn if present is None else drawn[present[modality.name]]
            assert there.unique().numel() <= 1


@pytest.mark.parametrize("policy", ["group_uniform", "independent", "tube", "attention"])
def test_the_common_case_is_equal(policy):
    modalities = (Modality("video", 64, 3, (4, 4, 4)), Modality("audio", 64, 1, (64,)))
    plan = plan_groups(8, modalities)
    assert has_equal_counts(MaskConfig(policy), modalities, plan)
    assert not has_equal_counts(MaskConfig("modality"), modalities, plan)
    assert has_equal_counts(MaskConfig("modality"), modalities, plan, query_all=True)
