"""Scores are the model's own first softmax, summed over what looks."""

import pytest
import torch

from hip_model import Modality, build_model
from hip_model.attention_scores import attention_scores

IMAGE = Modality("image", 50, 3, (5, 10))
AUDIO = Modality("audio", 17, 1, (17,))


@pytest.mark.parametrize("name", ["hip_nano", "io_mini", "perceiver_tiny"])
def test_every_latent_gives_one_unit_of_attention_to_real_tokens(name):
    torch.manual_seed(0)
    model = build_model(name, (IMAGE, AUDIO))
    latents = model.config.num_latents if name != "hip_nano" else model.config.num_latents[0]
    inputs = {m.name: torch.randn(2, m.num_tokens, m.num_channels) for m in (IMAGE, AUDIO)}
    for modality, scores in attention_scores(model, inputs).items():
        groups = model.group_plan()[modality]
        assert scores.shape == (2, groups.groups, groups.group_tokens)
        torch.testing.assert_close(scores.sum(-1), torch.full(scores.shape[:2], float(latents)))
        assert not scores.flatten(1)[:, groups.num_tokens :].any()
        assert (scores.flatten(1)[:, : groups.num_tokens] > 0).all()


def test_scores_equal_the_softmax_written_out():
    torch.manual_seed(0)
    model = build_model("hip_nano", (IMAGE,))
    values = torch.randn(1, 50, 3)
    found = attention_scores(model, {"image": values})["image"][0]
    attention = model.blocks[0].cross_attention
    tokens = model.embed["image"](values[0]) + model.positions["image"]()
    keys = attention.key(attention.key_norm(tokens))
    queries = attention.query(attention.query_norm(model.blocks[0].latents())).view(4, 16, -1)
    for group in range(4):
        own = keys[13 * group : min(50, 13 * (group + 1))]
        expected = (queries[group] @ own.T / keys.shape[-1] ** 0.5).softmax(-1).sum(0)
        torch.testing.assert_close(found[group, : len(own)], expected)


def test_multi_head_scores_sum_over_heads():
    torch.manual_seed(0)
    model = build_model("io_mini", (IMAGE,), num_cross_attention_heads=4)
    scores = attention_scores(model, {"image": torch.randn(1, 50, 3)})["image"]
    assert scores.sum().item() == pytest.approx(4 * 128, rel=1e-5)
