"""Perceiver (arXiv 2103.03206): one set of latents looks at all inputs again and again through shared weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from hip_model.attention import MLP, CrossAttention, Keys, SelfAttention, hidden_scores
from hip_model.config import POSITION_KINDS
from hip_model.errors import ConfigError
from hip_model.fourier import fourier_features, num_fourier_channels
from hip_model.grouping import GroupPlan, plan_single_group
from hip_model.init import Linear, Table
from hip_model.modality import Modality
from hip_model.selection import TokenSelection
from hip_model.tokens import ModelOutput, check_inputs, check_names, token_rows

_LATENT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
    """Dimensions of a Perceiver.

    The first cross-attention has weights of its own, all later ones share theirs; every iteration shares one stack of
    self-attention layers.

    Raises:
        ConfigError: naming the field, the value and what would fit.
    """

    num_latents: int
    num_channels: int
    num_iterations: int = 8
    """Passes through the same self-attention layers."""
    num_cross_attentions: int | None = None
    """Iterations that begin with a look at the inputs; None: all, 1: Perceiver IO's encoder (arXiv 2107.14795)."""
    num_self_attention_layers: int = 6
    num_self_attention_heads: int = 8
    cross_attention_widening: int = 1
    self_attention_widening: int = 1
    position: str = "fourier"
    """``fourier`` features beside the raw values; or ``learned``: a table of ``position_channels`` through a linear
    map, beside the values embedded to ``embedding_channels``."""
    fourier_bands: int = 64
    """Frequencies per axis of Fourier features."""
    embedding_channels: int = 256
    """Width of the embedded values, where positions are learned."""
    position_channels: int = 256
    """Width of a learned position table."""
    modality_channels: int = 4
    """Least width of the learned vector that tells modalities apart, where there are several."""
    dropout: float = 0.0
    """Probability of dropping an element of a self-attention branch in training."""
    drop_path: float = 0.0
    """Probability of dropping a self-attention branch for a whole example in training."""
    activation_checkpointing: str = "none"
    """``none``, or ``blocks``: keep only the latents between iterations and compute the rest again backward."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{field.name}={value!r} must be a whole number of at least 1")
            if field.type == "float" and not 0 <= value < 1:
                raise ConfigError(f"{field.name}={value!r} must be a probability below 1")
        if not 1 <= self.cross_attentions <= self.num_iterations:
            raise ConfigError(
                f"num_cross_attentions={self.num_cross_attentions} must be 1 to num_iterations={self.num_iterations}"
            )
        if self.num_channels % self.num_self_attention_heads:
            raise ConfigError(
                f"num_self_attention_heads={self.num_self_attention_heads} does not divide "
                f"num_channels={self.num_channels}"
            )
        if self.position not in POSITION_KINDS:
            raise ConfigError(f"position={self.position!r} is not known; use one of {', '.join(POSITION_KINDS)}")
        if self.activation_checkpointing not in ("none", "blocks"):
            raise ConfigError(f"activation_checkpointing={self.activation_checkpointing!r}; use one of none, blocks")

    @property
    def cross_attentions(self) -> int:
        """How many iterations begin with a cross-attention."""
        return self.num_iterations if self.num_cross_attentions is None else self.num_cross_attentions

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; ``from_dict`` gives an equal config back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PerceiverConfig:
        """A config from ``to_dict``'s result. Raises ConfigError for a field that does not exist or is left out."""
        cls._check_names(values)
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"PerceiverConfig: {error}") from error

    def replace(self, **changes: Any) -> PerceiverConfig:
        """The same config with some fields changed, validated again."""
        self._check_names(changes)
        return replace(self, **changes)

    @classmethod
    def _check_names(cls, values: Mapping[str, Any]) -> None:
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(f"PerceiverConfig has no field {unknown[0]!r}; its fields are {', '.join(known)}")


PERCEIVER_VARIANTS: dict[str, PerceiverConfig] = {
    # The geometry of the published ImageNet model; the paper's first version had 1,024 latents of 512 channels.
    "perceiver_imagenet": PerceiverConfig(num_latents=512, num_channels=1024),
    "perceiver_imagenet_v1": PerceiverConfig(num_latents=1024, num_channels=512),
    # The Perceiver IO paper's ImageNet encoder; with a ClassDecoder 48,440,627 parameters.
    "perceiver_io_imagenet": PerceiverConfig(num_latents=512, num_channels=1024, num_cross_attentions=1),
    # The same with learned positions; with a ClassDecoder 62,255,848 parameters.
    "perceiver_io_imagenet_learned": PerceiverConfig(
        num_latents=512, num_channels=1024, num_cross_attentions=1, position="learned"
    ),
    # Ours: trains in milliseconds on one core.
    "perceiver_tiny": PerceiverConfig(
        num_latents=32,
        num_channels=48,
        num_iterations=3,
        num_self_attention_layers=2,
        num_self_attention_heads=4,
        fourier_bands=8,
    ),
}


class Perceiver(nn.Module):
    """Latents that attend to all tokens ``num_iterations`` times, and a head that answers position queries.

    A token is its raw values, its Fourier features and, with several modalities, a learned vector that fills it up to
    the width all modalities share; nothing is embedded. With learned positions (Perceiver IO's other ImageNet model) it
    is its embedded values beside its table row, mapped. The original only classifies: the head, which makes it a masked
    autoencoder, is Perceiver IO's, with positions as queries. Modalities without a shape, and point clouds in k-d
    order, have Fourier positions along their sequence.

    Raises:
        ConfigError: no modalities, or two of the same name.
    """

    def __init__(self, config: PerceiverConfig, modalities: Sequence[Modality]) -> None:
        super().__init__()
        check_names(modalities)
        self.config = config
        self.recompute_blocks = config.activation_checkpointing == "blocks"
        self.modalities = tuple(modalities)
        self._plan = plan_single_group(modalities)
        self.positions = nn.ModuleDict({m.name: _positions(m, config) for m in modalities})
        learned = modalities if config.position == "learned" else ()
        self.embed = nn.ModuleDict({m.name: Linear(m.num_channels, config.embedding_channels) for m in learned})
        width, used = token_channels(config, modalities), used_channels(config, modalities)
        fillers = {name: width - channels for name, channels in used.items()}
        self.modality_vectors = nn.ModuleDict({name: _Vector(rest) for name, rest in fillers.items() if rest})
        self.query_vectors = nn.ModuleDict(
            {m.name: _Vector(fillers[m.name] + value_channels(config, m)) for m in modalities}
        )
        self.latents = Table(config.num_latents, config.num_channels)
        nn.init.trunc_normal_(self.latents.weight, std=_LATENT_STD, a=-2.0, b=2.0)
        self.first_cross_attention = _cross_attention(config, width)
        self.shared_cross_attention = _cross_attention(config, width) if config.cross_attentions > 1 else None
        self.self_attention = nn.ModuleList(_self_attention(config) for _ in range(config.num_self_attention_layers))
        self.head = CrossAttention(width, config.num_channels, 1, 1, residual=False)
        self.head.mlp = _GeluMLP(width, 1)
        self.unembed = nn.ModuleDict({m.name: Linear(width, m.num_channels, zero=True) for m in modalities})

    def group_plan(self) -> GroupPlan:
        """Every modality is one group of all its tokens."""
        return self._plan

    def forward(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> ModelOutput:
        """Reconstruct every token, or with a ``selection`` its queries from its visible tokens; as ``HiP.forward``.

        Raises:
            InputError: inputs that do not fit the modalities.
        """
        latents = self.encode(inputs, selection)
        reconstruction = {}
        for groups in self._plan.modalities:
            rows = None if selection is None else token_rows(groups, selection.queries[groups.name])[0]
            queries = self._queries(groups.name, rows)
            reconstruction[groups.name] = self.unembed[groups.name](self.head(queries, [Keys(latents[-1])])).flatten(
                1, 2
            )
        return ModelOutput(reconstruction, latents)

    def encode(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> list[Tensor]:
        """The latents ``[B, 1, N, D]`` after every iteration."""
        check_inputs(inputs, self.modalities, self.latents.weight.device)
        keys = self._keys(inputs, selection)
        x = self.first_queries()
        outputs = []
        for index in range(self.config.num_iterations):
            attention = self.first_cross_attention if index == 0 else self.shared_cross_attention
            attention = attention if index < self.config.cross_attentions else None
            if self.recompute_blocks and self.training:
                x = checkpoint(self._iterate, attention, x, keys, use_reentrant=False)
            else:
                x = self._iterate(attention, x, keys)
            outputs.append(x)
        return outputs

    def stages(self) -> list[nn.Module]:
        """As ``HiP.stages``: every layer, once, though a step passes through the shared ones again and again."""
        cross = [self.first_cross_attention, self.shared_cross_attention]
        return [*(layer for layer in cross if layer is not None), *self.self_attention]

    def first_queries(self) -> Tensor:
        """The learned latents, ``[1, 1, N, D]``."""
        return self.latents().view(1, 1, self.config.num_latents, -1)

    def position_code(self, name: str, rows: Tensor | None = None) -> Tensor:
        """A token but for its values: position features and modality vector, ``[T or *rows.shape, W - C]``."""
        code: Tensor = self.positions[name](rows)
        return self.modality_vectors[name](code) if name in self.modality_vectors else code

    def full_tokens(self, inputs: Mapping[str, Tensor], codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tokens with their positions: ``[B, T, W]`` per modality."""
        return {m.name: _join(self._embedded(m.name, inputs[m.name]), codes[m.name]) for m in self.modalities}

    def _embedded(self, name: str, values: Tensor) -> Tensor:
        """Values as they stand in a token: raw beside Fourier features, embedded beside learned positions."""
        if name not in self.embed:
            return values
        embed: nn.Module = self.embed[name]
        return embed(values.to(next(embed.parameters()).dtype))

    def _iterate(self, attention: Any, latents: Tensor, keys: Keys) -> Tensor:
        latents = latents if attention is None else attention(latents, [keys])
        for layer in self.self_attention:
            latents = layer(latents)
        return latents

    def _keys(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None) -> Keys:
        if selection is None:
            tokens = self.full_tokens(inputs, {m.name: self.position_code(m.name) for m in self.modalities})
            return Keys(torch.cat([tokens[m.name] for m in self.modalities], dim=1).unsqueeze(1))
        values, empties = [], []
        for groups in self._plan.modalities:
            rows, empty = token_rows(groups, selection.visible[groups.name])
            given = inputs[groups.name]
            rows, empty = (part.flatten(1).expand(len(given), -1) for part in (rows, empty))
            chosen = given.gather(1, rows[..., None].expand(-1, -1, given.shape[-1]))
            values.append(_join(self._embedded(groups.name, chosen), self.position_code(groups.name, rows)))
            empties.append(empty)
        bias = hidden_scores(torch.cat(empties, dim=1).unsqueeze(1)) if selection.has_empty_slots else None
        return Keys(torch.cat(values, dim=1).unsqueeze(1), bias)

    def _queries(self, name: str, rows: Tensor | None) -> Tensor:
        code = self.query_vectors[name](self.positions[name](rows))
        return code.view(1, 1, *code.shape) if rows is None else code


def used_channels(config: PerceiverConfig, modalities: Sequence[Modality]) -> dict[str, int]:
    """Channels of each modality's values and position features together."""
    if config.position == "learned":
        return {m.name: config.embedding_channels + config.position_channels for m in modalities}
    axes = {m.name: len(m.shape or (m.num_tokens,)) for m in modalities}
    return {m.name: m.num_channels + num_fourier_channels(axes[m.name], config.fourier_bands) for m in modalities}


def value_channels(config: PerceiverConfig, modality: Modality) -> int:
    """Channels that a modality's values take in a token."""
    return config.embedding_channels if config.position == "learned" else modality.num_channels


def token_channels(config: PerceiverConfig, modalities: Sequence[Modality]) -> int:
    """Width ``W`` of every token: the widest modality's, and room to tell modalities apart where there are several."""
    return max(used_channels(config, modalities).values()) + (config.modality_channels if len(modalities) > 1 else 0)


class _FourierPositions(nn.Module):
    """Fourier features of one modality's tokens, a constant that is not saved."""

    features: Tensor

    def __init__(self, modality: Modality, num_bands: int) -> None:
        super().__init__()
        shape = modality.shape or (modality.num_tokens,)
        features = fourier_features(shape, num_bands, order=modality.token_order)
        self.register_buffer("features", features, persistent=False)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        return self.features if rows is None else self.features[rows]


class _LearnedPositions(nn.Module):
    """A table of one modality's positions and a linear map."""

    def __init__(self, modality: Modality, channels: int) -> None:
        super().__init__()
        self.table = Table(modality.num_tokens, channels)
        nn.init.trunc_normal_(self.table.weight, std=_LATENT_STD, a=-2.0, b=2.0)
        self.project = Linear(channels, channels)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        code: Tensor = self.project(self.table(rows))
        return code


def _positions(modality: Modality, config: PerceiverConfig) -> nn.Module:
    if config.position == "learned":
        return _LearnedPositions(modality, config.position_channels)
    return _FourierPositions(modality, config.fourier_bands)


class _Vector(nn.Module):
    """A learned vector appended to every row of ``[..., C]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        nn.init.trunc_normal_(self.weight, std=_LATENT_STD, a=-2.0, b=2.0)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, self.weight.to(rows.dtype).expand(*rows.shape[:-1], -1)], dim=-1)


class _GeluMLP(MLP):
    """The Perceiver's activation in the MLP that HiP's blocks use."""

    def forward(self, x: Tensor) -> Tensor:
        return self.output(gelu(self.hidden(x)))

    def branch(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self(x), None


def _cross_attention(config: PerceiverConfig, width: int) -> CrossAttention:
    attention = CrossAttention(config.num_channels, width, 1, config.cross_attention_widening)
    attention.mlp = _GeluMLP(config.num_channels, config.cross_attention_widening)
    return attention


def _self_attention(config: PerceiverConfig) -> SelfAttention:
    channels, widening = config.num_channels, config.self_attention_widening
    layer = SelfAttention(channels, config.num_self_attention_heads, widening, config.dropout, config.drop_path)
    layer.mlp = _GeluMLP(channels, widening)
    return layer


def _join(values: Tensor, code: Tensor) -> Tensor:
    """Values ``[B, T, C]`` beside codes ``[T or B x T, W - C]``."""
    return torch.cat([values.to(code.dtype), code.expand(*values.shape[:-1], -1)], dim=-1)
