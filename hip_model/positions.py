"""Position codes of one modality's tokens: a learned table, or Fourier features through a learned map."""

from __future__ import annotations

from torch import Tensor, nn

from hip_model.errors import ConfigError
from hip_model.fourier import fourier_features
from hip_model.init import Linear, Table
from hip_model.modality import Modality


class FourierPositions(nn.Module):
    """Fixed Fourier features of a token's place along the modality's axes, mapped to the embedding width."""

    features: Tensor

    def __init__(self, modality: Modality, channels: int, num_bands: int) -> None:
        super().__init__()
        if modality.shape is None:
            raise ConfigError(
                f"modality {modality.name!r} has no shape; Fourier positions need its axes, "
                f"such as shape=({modality.num_tokens},)"
            )
        features = fourier_features(modality.shape, num_bands, order=modality.token_order)
        self.register_buffer("features", features, persistent=False)
        self.project = Linear(features.shape[-1], channels)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The codes of all tokens ``[T, E]``, or of ``rows``: ``[*rows.shape, E]``."""
        features = self.features if rows is None else self.features[rows]
        return self.project(features.to(self.project.weight.dtype))


def build_positions(modality: Modality, kind: str, channels: int, num_bands: int) -> nn.Module:
    """The position module of one modality; called with no argument or with token indices."""
    if kind == "learned":
        return Table(modality.num_tokens, channels)
    return FourierPositions(modality, channels, num_bands)
