"""Few dials that span the hierarchies: every setting of them is a valid ``HiPConfig``.

A HiP has nine numbers a level with hard constraints between them, so a random search over them finds mostly invalid
models. These dials say what a designer would say (how deep, how many groups, how they merge, where the layers sit), and
the numbers follow. The paper's HiP-16 and HiP-256 are points of this space.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from hip_model.config import REGROUP_KINDS, HiPConfig
from hip_model.errors import ConfigError

CORE_BLOCKS = ("first_encoder", "last_encoder", "processor", "encoder")

# Highest value of each numeric dial; far above what is useful, low enough that a typing error is caught.
_LIMITS: dict[str, tuple[float, float]] = {
    "depth": (1, 8),
    "first_groups": (1, 65536),
    "group_fall": (1, 64),
    "first_latents": (1, 4096),
    "latent_growth": (0.25, 8.0),
    "maximum_latents": (1, 4096),
    "processor_latents": (1, 4096),
    "processor_channels": (4, 8192),
    "channel_growth": (1.0, 16.0),
    "processor_heads": (1, 256),
    "outer_levels": (0, 7),
    "outer_extra_channels": (0, 1024),
    "decoder_extra_channels": (0, 1024),
    "decoder_width": (0.05, 4.0),
    "core_layers": (0, 256),
    "outer_layers": (0, 64),
    "encoder_layers": (0, 64),
    "processor_layers": (0, 64),
    "decoder_layers": (0, 64),
    "embedding_channels": (1, 1024),
    "width_scale": (0.01, 64.0),
}


@dataclass(frozen=True, kw_only=True)
class GeometryDials:
    """One setting of the dials. The defaults are the paper's HiP-16.

    Raises:
        ConfigError: a dial out of its range, naming the nearest value inside.
    """

    depth: int = 3
    """Encoder levels before the processor; the decoder mirrors them, so the model has 2 * depth + 1 blocks."""
    first_groups: int = 16
    """Groups of the first level."""
    group_fall: int = 4
    """By how much the groups fall from one encoder level to the next, until one is left."""
    first_latents: int = 128
    """Latents per group of the first level."""
    latent_growth: float = 2.0
    """Factor on the latents per group from one encoder level to the next."""
    maximum_latents: int = 256
    """No encoder level has more latents per group than this."""
    processor_latents: int = 64
    """Latents of the processor."""
    processor_channels: int = 1024
    """Width of the processor, the widest level."""
    channel_growth: float = 2.0
    """Factor on the channels from one level to the next towards the processor."""
    processor_heads: int = 32
    """Self-attention heads of the processor; outer levels have proportionally fewer, at least 1."""
    outer_levels: int = 0
    """How many of the outermost encoder levels are 'outer': ``outer_layers`` deep, ``outer_extra_channels`` wider."""
    outer_extra_channels: int = 0
    """Channels added to the outer encoder levels."""
    decoder_extra_channels: int = 0
    """Channels added to the decoder levels that mirror the outer ones."""
    decoder_width: float = 1.0
    """Decoder channels as a factor on its mirror level's channels (before extras)."""
    core: str = "last_encoder"
    """Where the ``core_layers`` sit: one of ``CORE_BLOCKS`` (``encoder`` spreads them over all its levels)."""
    core_layers: int = 18
    """Self-attention layers of the core."""
    outer_layers: int = 1
    """Layers of each outer encoder level."""
    encoder_layers: int = 2
    """Layers of each other encoder level."""
    processor_layers: int = 2
    """Layers of the processor, unless it is the core."""
    decoder_layers: int = 1
    """Layers of each decoder level."""
    embedding_channels: int = 32
    """Width of the embedded tokens and of the position codes."""
    regroup: str = "reshape"
    """How latents change groups between levels: ``reshape`` or ``transpose_reshape``."""
    width_scale: float = 1.0
    """Factor on all channels (heads stay): what the budget solver turns."""

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            _check_range(name, getattr(self, name), low, high, whole=isinstance(low, int) and isinstance(high, int))
        _check_choice("core", self.core, CORE_BLOCKS)
        _check_choice("regroup", self.regroup, REGROUP_KINDS)
        if self.outer_levels > self.depth:
            raise ConfigError(f"outer_levels={self.outer_levels} but depth={self.depth}; use at most {self.depth}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeometryDials:
        """Dials by name. Raises ConfigError for a name that is no dial."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(f"there is no dial {unknown[0]!r}; the dials are {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """What ``from_dict`` takes."""
        return asdict(self)

    def changed(self, **values: Any) -> GeometryDials:
        """These dials with some of them turned."""
        return GeometryDials.from_dict({**self.to_dict(), **values})

    def build(self) -> HiPConfig:
        """The geometry that the dials describe; group counts and latents are rounded to what can be regrouped."""
        groups = self._encoder_groups()
        latents = self._encoder_latents(groups)
        heads, encoder, decoder, processor_channels = self._widths()
        encoder_layers, processor_layers = self._layers()
        blocks = 2 * self.depth + 1
        return HiPConfig(
            num_groups=(*groups, 1, *reversed(groups)),
            num_latents=(*latents, _round_up(self.processor_latents, groups[-1]), *reversed(latents)),
            num_channels=(*encoder, processor_channels, *reversed(decoder)),
            num_self_attention_layers=(*encoder_layers, processor_layers, *[self.decoder_layers] * self.depth),
            num_self_attention_heads=(*heads, self.processor_heads, *reversed(heads)),
            num_cross_attention_heads=(1,) * blocks,
            cross_attention_widening=(1,) * blocks,
            self_attention_widening=(4,) * blocks,
            embedding_channels=self.embedding_channels,
            regroup=self.regroup,
        )

    def _encoder_groups(self) -> list[int]:
        groups = [self.first_groups]
        while len(groups) < self.depth:
            wanted = max(1, groups[-1] // self.group_fall)
            # A level's groups merge whole, so each count divides the one before.
            groups.append(next(count for count in range(wanted, 0, -1) if groups[-1] % count == 0))
        return groups

    def _encoder_latents(self, groups: list[int]) -> list[int]:
        latents = []
        for level, group_count in enumerate(groups):
            wanted = min(self.maximum_latents, max(1, round(self.first_latents * self.latent_growth**level)))
            outward = groups[level - 1] // group_count if level else 1  # the decoder cuts a group into this many
            latents.append(_round_up(wanted, outward))
        return latents

    def _widths(self) -> tuple[list[int], list[int], list[int], int]:
        """Heads of each level from the outside in, encoder and decoder channels likewise, and processor channels."""
        heads, encoder, decoder = [], [], []
        for level in range(self.depth):
            shrink = self.channel_growth ** (self.depth - level)
            count = max(1, round(self.processor_heads / shrink))
            extra = int(level < self.outer_levels)
            natural = self.processor_channels / shrink
            heads.append(count)
            encoder.append(self._width(natural + extra * self.outer_extra_channels, count))
            decoder.append(self._width(natural * self.decoder_width + extra * self.decoder_extra_channels, count))
        return heads, encoder, decoder, self._width(self.processor_channels, self.processor_heads)

    def _width(self, channels: float, heads: int) -> int:
        """The nearest multiple of ``heads``, and of 8 where the width can afford it (rounding by at most 1/16)."""
        wanted = channels * self.width_scale
        aligned = math.lcm(heads, 8)
        step = aligned if wanted >= 8 * aligned else heads
        return max(heads, round(wanted / step) * step)

    def _layers(self) -> tuple[list[int], int]:
        encoder = [
            self.outer_layers if level < self.outer_levels else self.encoder_layers for level in range(self.depth)
        ]
        processor = self.processor_layers
        if self.core == "processor":
            processor = self.core_layers
        elif self.core == "encoder":
            share, rest = divmod(self.core_layers, self.depth)
            encoder = [share + int(self.depth - level <= rest) for level in range(self.depth)]
        else:
            encoder[0 if self.core == "first_encoder" else -1] = self.core_layers
        return encoder, processor


def hip_16_dials() -> GeometryDials:
    """The dials of the paper's HiP-16."""
    return GeometryDials()


def hip_256_dials() -> GeometryDials:
    """The dials of HiP-256 as released: a decoder of half the encoder's width."""
    return GeometryDials(
        depth=5,
        first_groups=256,
        first_latents=32,
        outer_levels=2,
        outer_extra_channels=32,
        decoder_width=0.5,
        embedding_channels=16,
    )


def hip_256_paper_dials() -> GeometryDials:
    """The dials of the HiP-256 that the paper counts: a decoder as wide as the encoder."""
    return hip_256_dials().changed(decoder_width=1.0, decoder_extra_channels=32)


def hip_mini_dials() -> GeometryDials:
    """The dials of HiP-Mini: one encoder level, a processor eight times as wide."""
    return GeometryDials(depth=1, channel_growth=8.0, core_layers=2, processor_layers=1)


def hip_16x3_dials() -> GeometryDials:
    """The dials of HiP-16x3: three blocks with the depth in the processor."""
    return GeometryDials(depth=1, channel_growth=8.0, core="processor", processor_latents=256, decoder_layers=2)


def named_dials() -> dict[str, GeometryDials]:
    """Dials of every named geometry that is a point of this space."""
    return {
        "hip_mini": hip_mini_dials(),
        "hip_16": hip_16_dials(),
        "hip_16x3": hip_16x3_dials(),
        "hip_256": hip_256_dials(),
        "hip_256_paper": hip_256_paper_dials(),
    }


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _check_range(name: str, value: Any, low: float, high: float, whole: bool) -> None:
    kind_fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not kind_fits or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        nearest = f"; the nearest is {min(max(value, low), high)}" if isinstance(value, (int, float)) else ""
        raise ConfigError(f"dial {name}={value!r} must be {kind} from {low} to {high}{nearest}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"dial {name}={value!r} is not known; use one of {', '.join(choices)}")
