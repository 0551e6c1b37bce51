"""One level of the hierarchy: learned latents look at the level below, then at each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hip_model.attention import CrossAttention, Keys, LazyKeys, SelfAttention
from hip_model.init import Table
from hip_model.norm import Residual


class Block(nn.Module):
    """Cross-attention onto learned latents, then self-attention layers (HiP paper, figure 2)."""

    def __init__(
        self,
        *,
        num_groups: int,
        num_latents: int,
        channels: int,
        input_channels: int,
        layers: int,
        cross_heads: int,
        self_heads: int,
        cross_widening: int,
        self_widening: int,
        skip_channels: int | None = None,
        train_latents: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.num_latents = num_latents
        self.train_latents = num_latents if train_latents is None else train_latents
        self.latents = Table(num_groups * num_latents, channels)
        self.cross_attention = CrossAttention(
            channels, input_channels, cross_heads, cross_widening, skip_channels=skip_channels
        )
        self.self_attention = nn.ModuleList(
            SelfAttention(channels, self_heads, self_widening, dropout, drop_path) for _ in range(layers)
        )

    def forward(
        self, keys: Sequence[Keys | LazyKeys], skip: Tensor | None = None, recompute_layers: bool = False
    ) -> Tensor:
        """``keys`` cover this block's groups in order; ``skip [B, G, N, D']``. Returns ``[B, G, N, D]``.

        ``recompute_layers``: keep only what passes between the layers and compute their insides again backward.
        """
        run = partial(checkpoint, use_reentrant=False) if recompute_layers else _call
        latents = self._queries(keys[0].batch)
        residual: Residual = run(self.cross_attention, latents, keys, skip, keep_residual=True)
        for layer in self.self_attention:
            residual = run(layer, residual)
        return residual.total()

    def layers(self) -> list[SelfAttention]:
        """The self-attention layers, in order."""
        return [layer for layer in self.self_attention if isinstance(layer, SelfAttention)]

    def _queries(self, batch: int) -> Tensor:
        """The latents ``[1, G, N, D]``, or in training a random subset per example and group ``[B, G, n, D]``."""
        if not self.training or self.train_latents == self.num_latents:
            return self.latents().view(1, self.num_groups, self.num_latents, -1)
        draws = torch.rand(batch, self.num_groups, self.num_latents, device=self.latents.weight.device)
        chosen = draws.argsort(dim=-1)[..., : self.train_latents]
        first = torch.arange(self.num_groups, device=chosen.device).view(1, -1, 1) * self.num_latents
        return self.latents(chosen + first)


def _call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return function(*arguments, **named)
