"""Labels enter and leave at the processor."""

from __future__ import annotations

import pytest
import torch
from test_hip import random_inputs, randomised, small_config

from hip_model import ClassBottleneckHiP, ConfigError, InputError, Modality, TokenSelection
from hip_model.selection import EMPTY_SLOT

TOKENS = [Modality("image", 60, 3)]
LABELS = [Modality("species", 1, 10), Modality("traits", 3, 4)]


def build() -> ClassBottleneckHiP:
    return randomised(ClassBottleneckHiP(small_config(), TOKENS, LABELS)).eval()  # type: ignore[return-value]


def test_labels_are_reconstructed_last_and_touch_no_block_before_the_processor() -> None:
    model, inputs = build(), random_inputs([*TOKENS, *LABELS])
    output = model(inputs)
    assert {name: tuple(answer.shape) for name, answer in output.reconstruction.items()} == {
        "image": (2, 60, 3), "species": (2, 1, 10), "traits": (2, 3, 4),
    }  # fmt: skip
    changed = model(inputs | {"species": inputs["species"] + 1.0})
    same = [torch.equal(a, b) for a, b in zip(output.latents, changed.latents, strict=True)]
    assert same == [True, True, False, False, False]


def test_a_hidden_label_does_not_matter_and_can_still_be_asked_for() -> None:
    model, inputs = build(), random_inputs([*TOKENS, *LABELS])
    everything = torch.arange(10).view(1, 1, -1)
    selection = TokenSelection(
        visible={"image": everything, "species": torch.full((1, 1, 1), EMPTY_SLOT)},
        queries={"image": everything, "species": torch.zeros(1, 1, 1, dtype=torch.long)},
    )
    found = model(inputs, selection).reconstruction
    changed = model(inputs | {"species": inputs["species"] + 1.0}, selection).reconstruction
    torch.testing.assert_close(found, changed)
    seen = model(inputs).reconstruction
    assert not torch.allclose(found["species"], seen["species"])
    assert found["traits"].shape == (2, 3, 4)


def test_label_and_modality_names_must_differ_and_labels_must_be_there() -> None:
    with pytest.raises(ConfigError, match="different names"):
        ClassBottleneckHiP(small_config(), TOKENS, [Modality("image", 1, 10)])
    with pytest.raises(ConfigError, match="needs one label or more"):
        ClassBottleneckHiP(small_config(), TOKENS, [])
    with pytest.raises(InputError, match="this model takes"):
        build()(random_inputs(TOKENS))


def test_encode_sees_the_labels() -> None:
    model, inputs = build(), random_inputs([*TOKENS, *LABELS])
    assert torch.equal(model.encode(inputs)[-1], model(inputs).latents[2])


def test_every_parameter_has_a_gradient() -> None:
    model = build()
    sum(answer.sum() for answer in model(random_inputs([*TOKENS, *LABELS])).reconstruction.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
