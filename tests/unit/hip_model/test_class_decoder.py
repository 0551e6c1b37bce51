"""The Perceiver IO paper's ImageNet classifier."""

from __future__ import annotations

import pytest
import torch

from hip_model import ConfigError, Modality, build_model
from hip_model.accounting import count_parameters
from hip_model.class_decoder import ClassDecoder
from hip_model.perceiver import PERCEIVER_VARIANTS

ENCODER = ("embed.", "positions.", "latents.", "first_cross_attention.", "shared_cross_attention.", "self_attention.")


@pytest.mark.parametrize(
    ("name", "published"), [("perceiver_io_imagenet", 48_440_627), ("perceiver_io_imagenet_learned", 62_255_848)]
)
def test_the_imagenet_classifiers_have_the_published_numbers_of_parameters(name: str, published: int) -> None:
    with torch.device("meta"):
        model = build_model(name, [Modality("image", 224 * 224, 3, shape=(224, 224))])
        decoder = ClassDecoder(1024, 1000)
    encoder = sum(parameter.numel() for part, parameter in model.named_parameters() if part.startswith(ENCODER))
    assert encoder + sum(parameter.numel() for parameter in decoder.parameters()) == published
    assert count_parameters(model.config, model.modalities) == sum(p.numel() for p in model.parameters())


def test_latents_look_at_the_inputs_once_and_every_weight_learns_from_the_class() -> None:
    torch.manual_seed(0)
    model = build_model("perceiver_tiny", [Modality("image", 64, 3, shape=(8, 8))], num_cross_attentions=1)
    decoder = ClassDecoder(48, 5)
    latents = model.encode({"image": torch.randn(2, 64, 3)})
    assert len(latents) == 3
    assert model.shared_cross_attention is None
    logits = decoder(latents[-1])
    assert logits.shape == (2, 5)
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 3])).backward()
    for name, parameter in [*model.named_parameters(), *decoder.named_parameters()]:
        assert (parameter.grad is not None) == name.startswith((*ENCODER, "query.", "attention.", "classify.")), name


def test_a_geometry_that_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match="num_cross_attentions=4 must be 1 to num_iterations=3"):
        PERCEIVER_VARIANTS["perceiver_tiny"].replace(num_cross_attentions=4)
    with pytest.raises(ConfigError, match="num_classes=0"):
        ClassDecoder(8, 0)
