"""What one kind of signal looks like to a model: its name, its token count and its channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hip_model.errors import ConfigError


@dataclass(frozen=True)
class Modality:
    """One kind of signal, an array ``[batch, num_tokens, num_channels]``.

    ``shape`` gives the axes before flattening, ``(frames, height, width)``, ``(height, width)`` or ``(samples,)``;
    Fourier positions and table resizing need it. ``token_order`` names how those axes were flattened.

    Raises:
        ConfigError: a count below 1, or a shape whose product is not ``num_tokens``.
    """

    name: str
    num_tokens: int
    num_channels: int
    shape: tuple[int, ...] | None = None
    token_order: str = "raster"

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.num_channels < 1:
            raise ConfigError(
                f"modality {self.name!r} needs at least 1 token and 1 channel, "
                f"got num_tokens={self.num_tokens}, num_channels={self.num_channels}"
            )
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))
            if math.prod(self.shape) != self.num_tokens:
                raise ConfigError(
                    f"modality {self.name!r}: shape {self.shape} has {math.prod(self.shape)} tokens, "
                    f"but num_tokens={self.num_tokens}"
                )
