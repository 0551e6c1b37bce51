"""Perceiver IO's classifier: one learned query looks at the latents, then a linear map to logits (arXiv 2107.14795)."""

from __future__ import annotations

from torch import Tensor, nn

from hip_model.attention import CrossAttention, Keys
from hip_model.errors import ConfigError
from hip_model.init import Linear, Table


class ClassDecoder(nn.Module):
    """Logits from a model's latents; trained together with the encoder, unlike a probe.

    Raises:
        ConfigError: fewer than 1 channel or class.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        if channels < 1 or num_classes < 1:
            raise ConfigError(
                f"a decoder needs channels and classes, got channels={channels}, num_classes={num_classes}"
            )
        self.query = Table(1, channels)
        self.attention = CrossAttention(channels, channels, heads=1, widening=1)
        self.classify = Linear(channels, num_classes)

    def forward(self, latents: Tensor) -> Tensor:
        """``[B, G, N, D] -> [B, classes]``."""
        keys = latents.flatten(1, 2).unsqueeze(1)
        logits: Tensor = self.classify(self.attention(self.query().view(1, 1, 1, -1), [Keys(keys)])[:, 0, 0])
        return logits
