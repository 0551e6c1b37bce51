"""Perceiver IO: the same call surface as HiP, tokens dropped or not, in one set of latents."""

from __future__ import annotations

import torch
from test_hip import random_inputs, random_selection, randomised

from hip_model import Modality, PerceiverIO, PerceiverIOConfig, TokenSelection
from hip_model.selection import EMPTY_SLOT

MODALITIES = [Modality("image", 30, 3), Modality("audio", 20, 1)]
CONFIG = PerceiverIOConfig(
    embedding_channels=16, num_latents=8, num_channels=24, num_self_attention_layers=2, num_self_attention_heads=2,
    num_cross_attention_heads=2, cross_attention_widening=1, self_attention_widening=2,
)  # fmt: skip


def test_a_selection_of_everything_is_the_whole_model() -> None:
    model = randomised(PerceiverIO(CONFIG, MODALITIES)).eval()
    inputs = random_inputs(MODALITIES)
    everything = {m.name: torch.arange(m.num_tokens).view(1, 1, -1) for m in MODALITIES}
    found, expected = model(inputs, TokenSelection(everything, everything)), model(inputs)
    for name, answer in expected.reconstruction.items():
        torch.testing.assert_close(found.reconstruction[name], answer, rtol=1e-4, atol=1e-5)


def test_dropped_tokens_do_not_matter_and_empty_slots_hold_nothing() -> None:
    model = randomised(PerceiverIO(CONFIG, MODALITIES)).eval()
    inputs = random_inputs(MODALITIES)
    selection = random_selection(model.group_plan(), 2, 0.3, seed=1)
    expected = model.encode(inputs, selection)[0]
    changed = {name: values.clone() for name, values in inputs.items()}
    for name, slots in selection.queries.items():
        for example in range(2):
            changed[name][example, slots[example, 0]] += 5.0
    torch.testing.assert_close(model.encode(changed, selection)[0], expected)
    padded = {
        name: torch.nn.functional.pad(slots, (0, 3), value=EMPTY_SLOT) for name, slots in selection.visible.items()
    }
    found = model.encode(inputs, TokenSelection(padded, selection.queries))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_masked_answers_equal_the_same_rows_of_the_full_reconstruction_head() -> None:
    model = randomised(PerceiverIO(CONFIG, MODALITIES)).eval()
    inputs = random_inputs(MODALITIES)
    selection = random_selection(model.group_plan(), 2, 0.3, seed=2)
    everything = {m.name: torch.arange(m.num_tokens).view(1, 1, -1) for m in MODALITIES}
    whole = model(inputs, TokenSelection(selection.visible, everything))
    some = model(inputs, selection)
    for name, slots in selection.queries.items():
        rows = slots[:, 0].unsqueeze(-1).expand(-1, -1, whole.reconstruction[name].shape[-1])
        torch.testing.assert_close(some.reconstruction[name], whole.reconstruction[name].gather(1, rows))


def test_latents_are_drawn_in_training_only() -> None:
    model = PerceiverIO(CONFIG.replace(latents_eval=12), MODALITIES)
    inputs = random_inputs(MODALITIES)
    assert model.train().encode(inputs)[0].shape == (2, 1, 8, 24)
    assert model.eval().encode(inputs)[0].shape == (2, 1, 12, 24)


def test_every_parameter_has_a_gradient() -> None:
    model = randomised(PerceiverIO(CONFIG, MODALITIES))
    sum(answer.sum() for answer in model(random_inputs(MODALITIES)).reconstruction.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
