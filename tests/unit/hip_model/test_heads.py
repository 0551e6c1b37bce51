"""Heads on any level of any model: shapes, where gradients go, and that they can learn."""

import pytest
import torch

from hip_model import Modality, build_model
from hip_model.errors import ConfigError, InputError
from hip_model.heads import (
    AttentiveProbe,
    ClassificationHead,
    DenseHead,
    LinearProbe,
    MultiLabelHead,
    encoder_channels,
    pool_latents,
)
from hip_model.perceiver import PERCEIVER_VARIANTS, Perceiver
from hip_model.selection import TokenSelection

IMAGE = Modality("image", 35, 3, (5, 7))
HEADS = [LinearProbe, AttentiveProbe, ClassificationHead, MultiLabelHead]


def build(name="hip_nano"):
    torch.manual_seed(0)
    if name == "perceiver_tiny":
        return Perceiver(PERCEIVER_VARIANTS[name], (IMAGE,))
    return build_model(name, (IMAGE,))


def image(batch=4):
    return {"image": torch.randn(batch, 35, 3, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["hip_nano", "io_mini", "perceiver_tiny"])
def test_every_head_fits_every_level(kind, name):
    model = build(name)
    levels = model(image()).latents
    channels = encoder_channels(model)
    assert channels == [latents.shape[-1] for latents in levels]
    for width, latents in zip(channels, levels, strict=True):
        assert kind(width, 5)(latents).shape == (4, 5)


@pytest.mark.parametrize(("kind", "frozen"), [(LinearProbe, True), (AttentiveProbe, True), (ClassificationHead, False)])
def test_probes_leave_the_encoder_alone_and_heads_train_it(kind, frozen):
    model = build()
    kind(64, 3)(model.encode(image())[-1]).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.blocks.parameters()) == frozen


@pytest.mark.parametrize("kind", [LinearProbe, AttentiveProbe, ClassificationHead])
def test_heads_learn_a_separable_problem(kind):
    torch.manual_seed(0)
    labels = torch.arange(64) % 3
    latents = torch.randn(64, 2, 5, 8)
    latents[torch.arange(64), 0, labels, labels] += 20.0
    head = kind(8, 3)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    for _ in range(120):
        loss = torch.nn.functional.cross_entropy(head(latents), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head.eval()(latents).argmax(-1) == labels).float().mean() > 0.9


def test_attentive_probe_sees_all_groups_and_ignores_their_order():
    probe = AttentiveProbe(8, 3, heads=2)
    latents = torch.randn(2, 4, 5, 8)
    torch.testing.assert_close(probe(latents), probe(latents.flip(1, 2)))
    changed = latents.clone()
    changed[:, 3, 4, 0] += 3
    assert not torch.allclose(probe(latents), probe(changed))


def test_losses_and_probabilities():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    exclusive, multiple = ClassificationHead(4, 3), MultiLabelHead(4, 3)
    assert exclusive.probabilities(logits).sum().item() == pytest.approx(1)
    expected = -torch.log_softmax(logits, -1)[0, 2]
    torch.testing.assert_close(exclusive.loss(logits, torch.tensor([2])), expected)
    torch.testing.assert_close(multiple.probabilities(logits), logits.sigmoid())
    targets = torch.tensor([[1, 0, 1]])
    smooth = targets * 0.9 + 0.05
    expected = -(smooth * logits.sigmoid().log() + (1 - smooth) * (-logits).sigmoid().log()).mean()
    torch.testing.assert_close(multiple.loss(logits, targets, label_smoothing=0.1), expected)


@pytest.mark.parametrize("name", ["hip_nano", "io_mini", "perceiver_tiny"])
def test_dense_head_answers_every_token_and_a_selections_queries(name):
    head = DenseHead(build(name), "image", 6).eval()
    groups = head.model.group_plan()["image"]
    everything = torch.arange(groups.group_tokens).view(1, 1, -1)
    with torch.no_grad():
        full = head(image())
        asked = head(image(), TokenSelection({"image": everything}, {"image": everything[..., 3:5]}))
    assert full.shape == (4, 35, 6)
    rows = [group * groups.group_tokens + slot for group in range(groups.groups) for slot in (3, 4)]
    torch.testing.assert_close(asked, full[:, rows], atol=1e-4, rtol=1e-4)


def test_dense_head_learns_which_half_of_the_image_a_token_is_in():
    head = DenseHead(build(), "image", 2)
    labels = (torch.arange(35) % 7 > 3).long().expand(4, -1).clone()
    labels[0, 0] = 255
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = head.loss(head(image()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_errors_name_what_does_not_fit():
    with pytest.raises(ConfigError, match="heads=3 does not divide the block's 8 channels"):
        AttentiveProbe(8, 2, heads=3)
    with pytest.raises(ConfigError, match="num_classes=0 must be at least 1"):
        LinearProbe(8, 0)
    with pytest.raises(ConfigError, match="modality 'depth', but the model has image"):
        DenseHead(build(), "depth", 2)
    for call in (pool_latents, AttentiveProbe(8, 2)):
        with pytest.raises(InputError, match=r"got shape \(2, 5, 8\)"):
            call(torch.zeros(2, 5, 8))
