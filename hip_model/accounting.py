"""What a model costs: parameters, forward FLOPs and activation memory, in closed form and part by part.

FLOPs are those of the matrix products, a multiplication and an addition counted separately, as
``torch.utils.flop_counter`` counts them on the naive path (the one that reads like the paper; padding counts as one key
a group). All figures are for one sample. Nothing is built or run, so a 100 M parameter model is accounted for in
microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hip_model.config import HiPConfig, PerceiverIOConfig
from hip_model.errors import ConfigError
from hip_model.fourier import num_fourier_channels
from hip_model.grouping import ModalityGroups, plan_groups, plan_single_group
from hip_model.layer_costs import Cost, Looking, cross_attention, linear, self_attention
from hip_model.masking import MaskConfig
from hip_model.modality import Modality
from hip_model.perceiver import PerceiverConfig
from hip_model.perceiver_costs import perceiver_parts
from hip_model.variants import ModelConfig

TRAINING_TO_FORWARD = 3
"""A training step does the forward products once and two more of the same size for the gradients."""

ADAMW_BYTES_PER_PARAMETER = 8
"""Two float32 moments."""


@dataclass(frozen=True)
class ModelCost:
    """The cost of one model for one sample, by part (``embed``, ``block_0.cross``, …, ``reconstruction_head``)."""

    parts: dict[str, Cost]

    @property
    def parameters(self) -> int:
        """Trained numbers of the whole model."""
        return sum(part.parameters for part in self.parts.values())

    @property
    def forward_flops(self) -> int:
        """FLOPs of one sample's forward pass."""
        return sum(part.flops for part in self.parts.values())

    @property
    def training_flops(self) -> int:
        """Forward and backward of one step."""
        return TRAINING_TO_FORWARD * self.forward_flops

    @property
    def saved_elements(self) -> int:
        """Activation values kept from the forward pass for the backward pass."""
        return sum(part.saved_elements for part in self.parts.values())

    def of(self, prefix: str) -> Cost:
        """The sum of the parts whose name is ``prefix`` or starts with ``prefix.``."""
        total = Cost()
        for name, part in self.parts.items():
            if name == prefix or name.startswith(f"{prefix}."):
                total = total + part
        return total


def count_parameters(config: ModelConfig, modalities: Sequence[Modality], labels: Sequence[Modality] = ()) -> int:
    """Trainable parameters of the model, exactly; ``labels`` are those of a class-bottleneck model."""
    return model_cost(config, modalities, labels).parameters


def forward_flops(
    config: ModelConfig,
    modalities: Sequence[Modality],
    mask: MaskConfig | None = None,
    labels: Sequence[Modality] = (),
) -> int:
    """Matrix-product FLOPs of one forward pass of one sample; three times that is a training step's.

    With a ``mask`` only the visible tokens enter and only the masked ones are answered; without it all do both.
    """
    return model_cost(config, modalities, labels, mask).forward_flops


def activation_bytes(
    config: ModelConfig,
    modalities: Sequence[Modality],
    mask: MaskConfig | None = None,
    bytes_per_value: int = 4,
) -> int:
    """Bytes of activations that one sample keeps alive between its forward and its backward pass (within 15 %).

    With ``activation_checkpointing="blocks"``: at the worst moment of the backward pass, when the largest block has
    been computed again.
    """
    cost = model_cost(config, modalities, (), mask)
    if config.activation_checkpointing == "none":
        return cost.saved_elements * bytes_per_value
    blocks, outputs = _recomputed_blocks(config, cost)
    outside = sum(part.saved_elements for name, part in cost.parts.items() if not is_recomputed(name))
    return (outside + sum(outputs) + max(blocks)) * bytes_per_value


def is_recomputed(part: str) -> bool:
    """Whether ``activation_checkpointing="blocks"`` computes a part of a model's cost twice."""
    return part.startswith("block_") or part in ("first_cross", "shared_cross", "self")


def _recomputed_blocks(config: ModelConfig, cost: ModelCost) -> tuple[list[int], list[int]]:
    """Values that each block keeps once it is computed again, and values of its output.

    Of a Perceiver these are its iterations, of Perceiver IO its layers.
    """
    if isinstance(config, PerceiverConfig):
        count = config.num_iterations
        inside = cost.parts["first_cross"].saved_elements + cost.parts["self"].saved_elements // count
        return [inside] * count, [config.num_latents * config.num_channels] * count
    if isinstance(config, PerceiverIOConfig):
        count = config.num_self_attention_layers
        layers = [cost.parts["block_0.self"].saved_elements // count] * count
        output = config.latent_counts[0] * config.num_channels
        return [cost.parts["block_0.cross"].saved_elements, *layers], [output] * (1 + count)
    latents = [*config.num_latents]
    latents[config.processor] = config.processor_latent_counts[0]
    outputs = [g * n * d for g, n, d in zip(config.num_groups, latents, config.num_channels, strict=True)]
    return [cost.of(f"block_{index}").saved_elements for index in range(len(outputs))], outputs


def optimizer_bytes(parameters: int, mixed_precision: bool = False, shard_stage: int = 0, workers: int = 1) -> int:
    """Bytes of weights, gradients and AdamW state that one worker holds.

    ``mixed_precision`` keeps 16-bit weights and gradients beside float32 master weights. ``shard_stage`` is ZeRO's: 1
    shards the optimizer state over ``workers``, 2 the gradients too, 3 the weights too.

    Raises:
        ConfigError: a stage outside 0 to 3, or fewer than one worker.
    """
    if shard_stage not in (0, 1, 2, 3) or workers < 1:
        raise ConfigError(f"shard_stage is 0 to 3 and workers at least 1, got {shard_stage} and {workers}")
    weight = gradient = 2 if mixed_precision else 4
    state = ADAMW_BYTES_PER_PARAMETER + (4 if mixed_precision else 0)
    shares = [workers if shard_stage >= stage else 1 for stage in (3, 2, 1)]
    return sum(-(-parameters * size // share) for size, share in zip((weight, gradient, state), shares, strict=True))


def model_cost(
    config: ModelConfig,
    modalities: Sequence[Modality],
    labels: Sequence[Modality] = (),
    mask: MaskConfig | None = None,
) -> ModelCost:
    """The cost of the model that ``config`` and ``modalities`` describe, part by part.

    Raises:
        ConfigError: labels for a model that has no bottleneck, or modalities that do not fit the config.
    """
    if not isinstance(config, HiPConfig) and labels:
        raise ConfigError("a Perceiver or Perceiver IO model has no class bottleneck; drop the labels")
    if isinstance(config, PerceiverIOConfig):
        return ModelCost(dict(_perceiver_io_parts(config, modalities, mask)))
    if isinstance(config, PerceiverConfig):
        tokens = {group.name: _count_tokens(group, mask) for group in plan_single_group(modalities).modalities}
        entering = {name: count.entering for name, count in tokens.items()}
        answered = {name: count.queried for name, count in tokens.items()}
        return ModelCost(dict(perceiver_parts(config, modalities, entering, answered)))
    return ModelCost(dict(_hip_parts(config, modalities, labels, mask)))


@dataclass(frozen=True)
class _Tokens:
    """One modality's groups, and how many slots of each enter, are answered, and stand for padding."""

    groups: int
    entering: int
    queried: int
    padding_keys: int


def _count_tokens(group: ModalityGroups, mask: MaskConfig | None, pads_are_keys: bool = False) -> _Tokens:
    if mask is None:
        padding = int(pads_are_keys and group.group_padding > 0)
        return _Tokens(group.groups, group.group_tokens, group.group_tokens, padding)
    visible = mask.visible_tokens(group.name, group.group_tokens)
    padding = int(pads_are_keys and group.group_padding + group.final_padding > 0)
    return _Tokens(group.groups, max(1, visible), max(1, group.group_tokens - visible), padding)


def _hip_parts(
    config: HiPConfig, modalities: Sequence[Modality], labels: Sequence[Modality], mask: MaskConfig | None
) -> Iterator[tuple[str, Cost]]:
    plan = plan_groups(config.num_groups[0], modalities)
    tokens = {group.name: _count_tokens(group, mask, not config.mask_padding) for group in plan.modalities}
    yield from _token_parts(config, modalities, tokens)
    latents, table_rows = [*config.num_latents], [*config.num_latents]
    latents[config.processor], table_rows[config.processor] = config.processor_latent_counts
    for block, (groups, channels) in enumerate(zip(config.num_groups, config.num_channels, strict=True)):
        if block == 0:
            parts = [Looking(t.groups, latents[0], t.entering + t.padding_keys) for t in tokens.values()]
        else:
            keys = config.num_groups[block - 1] * latents[block - 1] // groups
            keys += sum(label.num_tokens for label in labels) if block == config.processor else 0
            parts = [Looking(groups, latents[block], keys)]
        yield f"block_{block}.cross", _block_cross(config, block, parts)
        yield f"block_{block}.latents", Cost(groups * table_rows[block] * channels)
        heads, widening = config.num_self_attention_heads[block], config.self_attention_widening[block]
        layer = self_attention(groups, latents[block], channels, heads, widening)
        yield f"block_{block}.self", layer * config.num_self_attention_layers[block]
    if labels:
        yield from _label_parts(config, latents[config.processor], labels)
    asked = [Looking(t.groups, t.queried, latents[-1]) for t in tokens.values()]
    yield "reconstruction_head", cross_attention(asked, config.embedding_channels, config.num_channels[-1], 1, 1)


def _block_cross(config: HiPConfig, block: int, parts: Sequence[Looking]) -> Cost:
    channels = config.num_channels[block]
    heads, widening = config.num_cross_attention_heads[block], config.cross_attention_widening[block]
    cost = cross_attention(parts, channels, config.input_channels(block), heads, widening)
    partner = config.num_blocks - 1 - block
    if block > config.processor and config.num_channels[partner] != channels:
        latents = sum(part.groups * part.queries for part in parts)
        cost = cost + linear(latents, config.num_channels[partner], channels, keeps_input=False)
    return cost


def _label_parts(config: HiPConfig, latents: int, labels: Sequence[Modality]) -> Iterator[tuple[str, Cost]]:
    """Labels join at the processor's input width and are answered by one head of their own."""
    width = config.input_channels(config.processor)
    for label in labels:
        yield f"label_position.{label.name}", Cost(label.num_tokens * width)
        yield f"label_embed.{label.name}", linear(label.num_tokens, label.num_channels, width)
        yield f"label_unembed.{label.name}", linear(label.num_tokens, width, label.num_channels)
    asked = [Looking(1, label.num_tokens, latents) for label in labels]
    yield "label_head", cross_attention(asked, width, config.num_channels[config.processor], 1, 1)


def _perceiver_io_parts(
    config: PerceiverIOConfig, modalities: Sequence[Modality], mask: MaskConfig | None
) -> Iterator[tuple[str, Cost]]:
    tokens = {group.name: _count_tokens(group, mask) for group in plan_single_group(modalities).modalities}
    yield from _token_parts(config, modalities, tokens)
    latents, table_rows = config.latent_counts
    channels, width = config.num_channels, config.embedding_channels
    entering = [Looking(1, latents, sum(count.entering for count in tokens.values()))]
    heads, widening = config.num_cross_attention_heads, config.cross_attention_widening
    yield "block_0.cross", cross_attention(entering, channels, width, heads, widening)
    yield "block_0.latents", Cost(table_rows * channels)
    layer = self_attention(1, latents, channels, config.num_self_attention_heads, config.self_attention_widening)
    yield "block_0.self", layer * config.num_self_attention_layers
    asked = [Looking(1, count.queried, latents) for count in tokens.values()]
    yield "reconstruction_head", cross_attention(asked, width, channels, 1, 1)


def _token_parts(
    config: HiPConfig | PerceiverIOConfig, modalities: Sequence[Modality], tokens: dict[str, _Tokens]
) -> Iterator[tuple[str, Cost]]:
    width = config.embedding_channels
    for modality in modalities:
        name, count = modality.name, tokens[modality.name]
        # One set of position codes serves the tokens and the queries of all examples, masked or not.
        positions = modality.num_tokens
        yield f"position.{name}", _position(config, modality, positions)
        if config.position_projection:
            yield f"position_projection.{name}", linear(positions, width, width, bias=False)
        yield f"embed.{name}", linear(count.groups * count.entering, modality.num_channels, width)
        yield f"unembed.{name}", linear(count.groups * count.queried, width, modality.num_channels)


def _position(config: HiPConfig | PerceiverIOConfig, modality: Modality, rows: int) -> Cost:
    if config.position_kind(modality.name) == "learned":
        return Cost(modality.num_tokens * config.embedding_channels)
    if modality.shape is None:
        raise ConfigError(f"modality {modality.name!r} has no shape, which Fourier positions need")
    # The features are a constant of the model and are not kept a second time.
    channels = num_fourier_channels(len(modality.shape), config.fourier_bands)
    return linear(rows, channels, config.embedding_channels, keeps_input=False)
