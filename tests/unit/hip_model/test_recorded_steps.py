"""A recorded training step is the plain one: on a GPU by its numbers, elsewhere by not being recorded at all."""

from __future__ import annotations

import pytest
import torch

from hip_model import MaskedAutoencoder, Modality, build_model
from hip_model.kernels.device import recorded_launches
from hip_model.recorded_steps import record_steps

IMAGE = Modality("image", 256, 3, (16, 16))


def autoencoders(device: str, dtype: torch.dtype) -> tuple[MaskedAutoencoder, MaskedAutoencoder]:
    """One model behind a plain and a recorded form."""
    torch.manual_seed(0)
    model = build_model("hip_nano", [IMAGE]).train().to(device, dtype)
    with torch.no_grad():
        for parameter in model.unembed.parameters():
            parameter.normal_(std=0.1)
    recorded = MaskedAutoencoder(model)
    record_steps(recorded)
    return MaskedAutoencoder(model), recorded


def batch(
    turn: int, device: str, dtype: torch.dtype, examples: int = 4
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(turn)
    return {"image": torch.randn(examples, 256, 3, dtype=dtype, device=device)}, torch.arange(
        examples, device=device
    ) + turn


def test_what_cannot_be_recorded_runs_as_before() -> None:
    plain, recorded = autoencoders("cpu", torch.float32)
    inputs, seeds = batch(1, "cpu", torch.float32)
    expected, found = plain(inputs, seeds), recorded(inputs, seeds)
    assert torch.equal(found.loss, expected.loss)
    found.loss.backward()
    assert all(p.grad is not None for p in recorded.parameters())
    assert recorded.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_replayed_gradients_add_up_as_plain_ones() -> None:
    plain, recorded = autoencoders("cuda", torch.bfloat16)
    # As DeepSpeed does for its hooks: the leaves' uses on the default stream stay alive.
    held = [p.expand_as(p).grad_fn for p in plain.parameters()]
    sums = []
    for autoencoder in (plain, recorded):
        autoencoder.zero_grad(set_to_none=True)
        losses = []
        for turn in range(3):  # accumulated over micro-batches
            with recorded_launches():
                loss = autoencoder(*batch(turn, "cuda", torch.bfloat16)).loss
            (loss * 0.5).backward()
            losses.append(loss.detach())
        sums.append((torch.stack(losses), [p.grad.float().clone() for p in autoencoder.parameters()]))
    assert torch.allclose(sums[0][0], sums[1][0], rtol=1e-3)
    whole = torch.cat([gradient.flatten() for gradient in sums[0][1]])
    difference = torch.cat([(a - b).flatten() for a, b in zip(sums[0][1], sums[1][1], strict=True)])
    assert difference.norm() < 5e-3 * whole.norm()
    assert len(held) == len(sums[0][1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_another_batch_size_and_a_late_backward_pass() -> None:
    _, recorded = autoencoders("cuda", torch.bfloat16)
    first = recorded(*batch(0, "cuda", torch.bfloat16)).loss
    recorded(*batch(1, "cuda", torch.bfloat16, examples=2)).loss.backward()  # not recorded, so nothing is overwritten
    first.backward()
    late = recorded(*batch(2, "cuda", torch.bfloat16)).loss
    recorded(*batch(3, "cuda", torch.bfloat16))
    with pytest.raises(RuntimeError, match="call it before"):
        late.backward()
