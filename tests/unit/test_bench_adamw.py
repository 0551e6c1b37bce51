"""The GPU benchmark's optimizer is AdamW on float32 masters: on a GPU, or anywhere with TRITON_INTERPRET=1."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import nn

from bench.device import MasterAdamW

CUDA = torch.cuda.is_available()


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (CUDA or os.environ.get("TRITON_INTERPRET") == "1"),
    reason="no Triton, or neither a GPU nor its interpreter",
)
def test_masters_and_weights_follow_torch_adamw() -> None:
    device = "cuda" if CUDA else "cpu"
    torch.manual_seed(0)
    shapes = [(3,), (70, 30), (5000,), (16, 16)]
    weights = [nn.Parameter(torch.randn(shape, device=device).bfloat16()) for shape in shapes]
    twins = [nn.Parameter(weight.detach().float()) for weight in weights]
    found = MasterAdamW(weights)
    expected = torch.optim.AdamW(twins, lr=found.rate, betas=found.betas, eps=found.epsilon, weight_decay=found.decay)
    for turn in range(3):
        for weight, twin in zip(weights, twins, strict=True):
            weight.grad = torch.randn(weight.shape, device=device).bfloat16()
            twin.grad = weight.grad.float()
            if turn == 1 and weight.numel() == 3:  # a gradient that begins in the middle of a block of memory
                weight.grad = torch.cat([weight.grad[:1], weight.grad])[1:]
        found.step()
        expected.step()
        assert all(weight.grad is None for weight in weights)
    for weight, twin in zip(weights, twins, strict=True):
        # The interpreter cuts where a GPU rounds.
        torch.testing.assert_close(weight.detach(), twin.detach().bfloat16(), rtol=0.0 if CUDA else 2**-7, atol=0.0)
    masters = torch.cat([twin.detach().flatten() for twin in twins])
    kept = torch.cat([part[: twin.numel()] for part, twin in zip(_parts(found), twins, strict=True)])
    torch.testing.assert_close(kept, masters, rtol=0, atol=1e-6)


def _parts(optimizer: MasterAdamW) -> list[torch.Tensor]:
    return [optimizer.master[first:] for first in optimizer._firsts.tolist()]
