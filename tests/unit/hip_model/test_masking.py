"""Masks: static counts, pure in the example's seed, inside the modality, and each policy as it is defined."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hip_model.errors import ConfigError, InputError
from hip_model.grouping import plan_groups, plan_single_group
from hip_model.masking import MASK_POLICIES, MaskConfig, mask_seeds, sample_selection
from hip_model.modality import Modality
from hip_model.ordering import token_order
from hip_model.random_bits import as_int64, mix

VIDEO = Modality("video", 4 * 6 * 8, 3, (4, 6, 8))
AUDIO = Modality("audio", 61, 1, (61,))
LABEL = Modality("label", 1, 10)


def seeds(count, seed=0, epoch=0):
    return mask_seeds(seed, torch.full((count,), epoch), torch.arange(count) * 7919 + 3)


def sample(policy="group_uniform", groups=6, batch=5, modalities=(VIDEO, AUDIO), seed=0, **options):
    config = MaskConfig(policy, options.pop("ratio", 0.85), options.pop("per_modality", {}))
    plan = plan_groups(groups, modalities)
    if policy == "attention" and "scores" not in options:
        options["scores"] = {
            item.name: torch.rand(batch, item.groups, item.group_tokens, generator=torch.Generator().manual_seed(1))
            for item in plan.modalities
        }
    return plan, sample_selection(config, modalities, plan, seeds(batch, seed), **options)


def tokens(index, groups, batch=5):
    """Sets of token numbers per example, empty slots left out."""
    index = index.expand(batch, groups.groups, -1)
    numbers = index + torch.arange(groups.groups)[:, None] * groups.group_tokens
    return [set(numbers[row][index[row] >= 0].tolist()) for row in range(batch)]


BITS = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**70), st.lists(st.tuples(BITS, BITS), min_size=1, max_size=9))
def test_seeds_of_host_memory_are_those_that_a_device_computes(seed, pairs):
    """Outside of a compiled program numpy computes them on the host; the same hash in torch's operations."""
    epochs, examples = torch.tensor(pairs).unbind(1)
    run = mix(torch.tensor(as_int64(seed)))
    assert torch.equal(mask_seeds(seed, epochs, examples), mix(mix(epochs ^ run) ^ examples))


@pytest.mark.parametrize("policy", MASK_POLICIES)
@pytest.mark.parametrize("groups", [2, 6, 7])
def test_visible_and_queried_tokens_partition_the_modality(policy, groups):
    plan, selection = sample(policy, groups)
    for modality in (VIDEO, AUDIO):
        visible = tokens(selection.visible[modality.name], plan[modality.name])
        queried = tokens(selection.queries[modality.name], plan[modality.name])
        for seen, asked in zip(visible, queried, strict=True):
            assert not seen & asked
            assert seen | asked == set(range(modality.num_tokens))


@pytest.mark.parametrize("policy", MASK_POLICIES)
def test_slots_ascend_and_empty_ones_come_last(policy):
    _, selection = sample(policy, 7)
    for index in (*selection.visible.values(), *selection.queries.values()):
        position = torch.where(index < 0, index.new_tensor(10**6) + torch.arange(index.shape[-1]), index)
        assert (position.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("policy", MASK_POLICIES)
def test_an_examples_mask_does_not_depend_on_its_batch(policy):
    scores = {"video": torch.rand(5, 4, 48), "audio": torch.rand(5, 2, 31)}
    plan, whole = sample(policy, 6, scores=scores)
    order = torch.tensor([3, 1])
    part = sample_selection(
        MaskConfig(policy), (VIDEO, AUDIO), plan, seeds(5)[order], scores={k: v[order] for k, v in scores.items()}
    )
    for name in ("video", "audio"):
        expected = tokens(whole.visible[name], plan[name])
        assert tokens(part.visible[name], plan[name], batch=2) == [expected[3], expected[1]]


def test_masks_differ_between_examples_epochs_and_seeds():
    runs = [seeds(4), seeds(4, epoch=1), seeds(4, seed=1)]
    assert torch.cat(runs).unique().numel() == 12


@given(st.floats(0.05, 0.95), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_group_uniform_keeps_a_fixed_count_and_one_pattern_for_all_groups(ratio, length):
    modality = Modality("image", length * 4, 3)
    _, selection = sample(groups=4, modalities=(modality,), ratio=ratio)
    visible = selection.visible["image"]
    if length > 1:
        assert visible.shape == (5, 1, max(1, round((1 - ratio) * length)))
        assert (visible >= 0).all()
        assert (selection.queries["image"] >= -1).all()


def test_independent_groups_have_their_own_patterns():
    _, selection = sample("independent", 4, modalities=(VIDEO,))
    visible = selection.visible["video"]
    assert visible.shape == (5, 4, round(0.15 * 48))
    assert visible[0].unique(dim=0).shape[0] == 4


@pytest.mark.parametrize("order", ["raster", "hilbert", "time_major"])
def test_tube_shows_the_same_cells_in_every_frame(order):
    video = Modality("video", 4 * 6 * 8, 3, (4, 6, 8), order)
    plan, selection = sample("tube", 5, modalities=(video,))
    raster = token_order(order, (4, 6, 8))
    for seen in tokens(selection.visible["video"], plan["video"]):
        frames = [{int(raster[token]) % 48 for token in seen if raster[token] // 48 == frame} for frame in range(4)]
        assert len(frames[0]) == round(0.15 * 48)
        assert frames[0] == frames[1] == frames[2] == frames[3]


def test_modality_policy_hides_exactly_one_whole():
    plan, selection = sample("modality", 6, batch=64)
    hidden = {name: (selection.visible[name] < 0).all(dim=-1).all(dim=-1) for name in ("video", "audio")}
    assert (hidden["video"] ^ hidden["audio"]).all()
    assert 16 < hidden["video"].sum() < 48
    queried = tokens(selection.queries["audio"], plan["audio"], batch=64)
    assert all(len(asked) == 61 for asked, whole in zip(queried, hidden["audio"], strict=True) if whole)


def test_modality_policy_never_hides_the_only_one_present():
    present = {"audio": torch.tensor([False] * 5)}
    _, selection = sample("modality", present=present)
    assert (selection.visible["video"][:, 0, 0] >= 0).all()


def test_attention_hides_what_is_looked_at_most():
    scores = {"image": torch.full((5, 4, 20), 1e-6)}
    scores["image"][:, :, 3:20:2] = 1e6
    _, selection = sample("attention", 4, modalities=(Modality("image", 80, 3),), ratio=0.45, scores=scores)
    assert selection.queries["image"][0, 0].tolist() == list(range(3, 20, 2))


def test_attention_without_scores_is_an_error():
    with pytest.raises(InputError, match="scores for modality 'audio'"):
        sample("attention", scores={"video": torch.rand(5, 4, 48)})


def test_ratios_of_single_modalities():
    _, selection = sample(per_modality={"video": 0.5, "audio": 1.0})
    assert selection.visible["video"].shape[-1] == 24
    assert (selection.visible["audio"] == -1).all()
    _, selection = sample(per_modality={"audio": 0})
    assert (selection.queries["audio"] == -1).all()


def test_a_single_token_is_hidden_with_the_ratios_probability():
    _, selection = sample(groups=4, batch=400, modalities=(VIDEO, LABEL), ratio=0.7)
    hidden = selection.visible["label"].flatten() < 0
    assert torch.equal(hidden, selection.queries["label"].flatten() == 0)
    assert 0.6 < hidden.float().mean() < 0.8


def test_absent_modalities_have_only_empty_slots():
    present = {"audio": torch.tensor([True, False, True, False, True])}
    _, selection = sample(present=present, query_all=True)
    for index in (selection.visible["audio"], selection.queries["audio"]):
        assert torch.equal((index >= 0).any(dim=-1).any(dim=-1), present["audio"])
    assert (selection.queries["video"] >= 0).all()


def test_query_all_asks_for_every_token_once():
    plan, selection = sample(groups=7, query_all=True)
    assert selection.queries["video"].shape[0] == 1
    assert tokens(selection.queries["audio"], plan["audio"]) == [set(range(61))] * 5


@pytest.mark.parametrize("policy", MASK_POLICIES)
@pytest.mark.parametrize(
    "options", [{}, {"ratio": 0.5}, {"per_modality": {"audio": 1.0}}, {"per_modality": {"audio": 0}}]
)
@pytest.mark.parametrize("groups", [4, 6])
def test_a_promise_of_no_empty_slots_is_kept(policy, groups, options):
    audio, depth = Modality("audio", 60, 1, (60,)), Modality("depth", 64, 1, (8, 8))
    _, selection = sample(policy, groups, modalities=(VIDEO, audio, depth), **options)
    empty = any((index < 0).any() for index in (*selection.visible.values(), *selection.queries.values()))
    assert selection.has_empty_slots or not empty
    assert selection.has_empty_slots or policy in ("group_uniform", "independent", "attention")


def test_single_group_models_are_masked_over_the_whole_modality():
    plan = plan_single_group((VIDEO, AUDIO))
    selection = sample_selection(MaskConfig(), (VIDEO, AUDIO), plan, seeds(3))
    assert selection.visible["video"].shape == (3, 1, round(0.15 * 192))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("policy", ["group_uniform", "independent", "tube", "modality"])
def test_masks_are_the_same_on_every_device(policy):
    plan = plan_groups(7, (VIDEO, AUDIO))
    here = sample_selection(MaskConfig(policy), (VIDEO, AUDIO), plan, seeds(64))
    there = sample_selection(MaskConfig(policy), (VIDEO, AUDIO), plan, seeds(64).cuda())
    for name in ("video", "audio"):
        assert torch.equal(here.visible[name], there.visible[name].cpu())
        assert torch.equal(here.queries[name], there.queries[name].cpu())


def test_masks_are_recorded_constants():
    """A change of the hash would silently change every run that is resumed."""
    fixed = mask_seeds(17, torch.tensor([2]), torch.tensor([-5]))
    selection = sample_selection(MaskConfig(), (AUDIO,), plan_groups(2, (AUDIO,)), fixed)
    assert (fixed.tolist(), selection.visible["audio"].tolist()) == RECORDED


def test_config_errors_name_key_value_and_choice():
    with pytest.raises(ConfigError, match="'random' is unknown; choose one of group_uniform"):
        MaskConfig("random")
    with pytest.raises(ConfigError, match=r"below 1, got 1\.5"):
        MaskConfig(ratio=1.5)
    with pytest.raises(ConfigError, match="'audio' must be within 0 and 1, got -1"):
        MaskConfig(per_modality={"audio": -1})
    with pytest.raises(ConfigError, match="name sound, but the modalities are video, audio"):
        sample(per_modality={"sound": 0.5})
    with pytest.raises(ConfigError, match="frames, height, width"):
        sample("tube", modalities=(AUDIO,))
    with pytest.raises(ConfigError, match="shows another, but only audio may be seen"):
        sample("modality", modalities=(AUDIO,))
    with pytest.raises(ConfigError, match="shows another, but only video may be seen"):
        sample("modality", per_modality={"audio": 1})
    with pytest.raises(ConfigError, match="mask ratio 1 for video, audio leaves nothing to see"):
        sample(per_modality={"audio": 1, "video": 1})


RECORDED = ([5783867239451575872], [[[7, 8, 12, 18, 28], [7, 8, 12, 18, 28]]])
