"""What a Perceiver costs, part by part: shared weights count once, their products as often as they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hip_model.layer_costs import Cost, Looking, cross_attention, linear, self_attention
from hip_model.modality import Modality
from hip_model.perceiver import PerceiverConfig, token_channels, used_channels, value_channels


def perceiver_parts(
    config: PerceiverConfig,
    modalities: Sequence[Modality],
    entering: Mapping[str, int],
    answered: Mapping[str, int],
) -> Iterator[tuple[str, Cost]]:
    """The parts of one forward pass of one sample, given each modality's ``entering`` and ``answered`` tokens."""
    width, used = token_channels(config, modalities), used_channels(config, modalities)
    latents, channels, repeats = config.num_latents, config.num_channels, config.cross_attentions - 1
    looking = [Looking(1, latents, sum(entering.values()))]
    cross = cross_attention(looking, channels, width, 1, config.cross_attention_widening)
    yield "first_cross", cross
    if repeats:
        yield "shared_cross", _repeated(cross, repeats)
    yield "latents", Cost(latents * channels)
    layer = self_attention(1, latents, channels, config.num_self_attention_heads, config.self_attention_widening)
    yield "self", _repeated(layer * config.num_self_attention_layers, config.num_iterations)
    for modality in modalities:
        name = modality.name
        yield f"modality_vector.{name}", Cost(width - used[name])
        yield f"query_vector.{name}", Cost(width - used[name] + value_channels(config, modality))
        if config.position == "learned":
            yield f"embed.{name}", linear(entering[name], modality.num_channels, config.embedding_channels)
            yield f"positions.{name}", _table(modality, config.position_channels, entering[name] + answered[name])
        yield f"unembed.{name}", linear(answered[name], width, modality.num_channels)
    asked = [Looking(1, count, latents) for count in answered.values()]
    yield "reconstruction_head", cross_attention(asked, width, channels, 1, 1)


def _table(modality: Modality, channels: int, rows: int) -> Cost:
    """A learned table, and the map that every row taken from it goes through."""
    return Cost(modality.num_tokens * channels) + linear(rows, channels, channels)


def _repeated(cost: Cost, times: int) -> Cost:
    return Cost(cost.parameters, cost.flops * times, cost.saved_elements * times)
