"""Raw arrays to embedded, positioned, grouped tokens, and back: what all models of this package do at both ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hip_model.attention import HIDDEN_SCORE, Keys
from hip_model.config import HiPConfig, PerceiverIOConfig
from hip_model.errors import ConfigError, InputError
from hip_model.grouping import GroupPlan, ModalityGroups
from hip_model.init import Linear
from hip_model.modality import Modality
from hip_model.positions import build_positions
from hip_model.selection import TokenSelection


@dataclass(frozen=True)
class ModelOutput:
    """``reconstruction[name]`` ``[B, T, C]`` (or ``[B, g*q, C]`` for a selection) and every block's output ``[B, G, N, D]``."""

    reconstruction: dict[str, Tensor]
    latents: list[Tensor]


class TokenModel(nn.Module):
    """Embeddings, position codes and un-embeddings of a fixed list of modalities.

    The modality order is the constructor's, whatever the order of an input dict: it decides who owns which groups.
    """

    def __init__(self, config: HiPConfig | PerceiverIOConfig, modalities: Sequence[Modality], plan: GroupPlan) -> None:
        super().__init__()
        names = [modality.name for modality in modalities]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"a model needs one or more modalities with different names, got {names}")
        self.modalities = tuple(modalities)
        self._plan = plan
        width = config.embedding_channels
        self.embed = nn.ModuleDict({m.name: Linear(m.num_channels, width) for m in modalities})
        # Zero at first, so that a fresh model reconstructs exactly 0.
        self.unembed = nn.ModuleDict({m.name: Linear(width, m.num_channels, zero=True) for m in modalities})
        self.positions = nn.ModuleDict(
            {m.name: build_positions(m, config.position_kind(m.name), width, config.fourier_bands) for m in modalities}
        )
        # One per modality and tied to its place in the order, not to its name (as in the original).
        projections = [Linear(width, width, bias=False) for _ in modalities] if config.position_projection else []
        self.position_projections = nn.ModuleList(projections)

    def group_plan(self) -> GroupPlan:
        """Which groups each modality owns and how its tokens fill them."""
        return self._plan

    def position_code(self, name: str, rows: Tensor | None = None) -> Tensor:
        """The code that positions a modality's tokens and queries their reconstruction: ``[T, E]`` or ``[*rows.shape, E]``."""
        code: Tensor = self.positions[name](rows)
        if len(self.position_projections) == 0:
            return code
        index = [modality.name for modality in self.modalities].index(name)
        return self.position_projections[index](code)

    def check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Raise InputError for inputs that do not fit the modalities."""
        check_inputs(inputs, self.modalities, next(iter(self.unembed.parameters())).device)

    def embed_tokens(self, name: str, values: Tensor) -> Tensor:
        """``[..., C] -> [..., E]``, without positions."""
        embed: nn.Module = self.embed[name]
        return embed(values.to(next(embed.parameters()).dtype))

    def full_tokens(self, inputs: Mapping[str, Tensor], codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tokens with their positions: ``[B, T, E]`` per modality."""
        return {m.name: self.embed_tokens(m.name, inputs[m.name]) + codes[m.name] for m in self.modalities}

    def selected_tokens(self, name: str, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens in some slots with their positions ``[B, g, v, E]``, and which slots are empty ``[B or 1, g, v]``.

        ``slots [B or 1, g or 1, v]`` are positions inside groups. Only the selected raw values and position rows are read.
        """
        rows, empty = token_rows(self._plan[name], slots)
        flat = rows.flatten(1)
        if flat.shape[0] == 1:
            chosen = values.index_select(1, flat[0])
        else:
            chosen = values.gather(1, flat.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
        chosen = chosen.view(values.shape[0], *rows.shape[1:], values.shape[-1])
        return self.embed_tokens(name, chosen) + self.position_code(name, rows), empty

    def selected_queries(self, name: str, slots: Tensor) -> Tensor:
        """Position codes of some slots, ``[B or 1, g, q, E]``."""
        rows, _ = token_rows(self._plan[name], slots)
        return self.position_code(name, rows)


def token_rows(groups: ModalityGroups, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Token indices of group slots, safe to index with, and which slots hold no token: both ``[B or 1, groups, s]``."""
    first = torch.arange(groups.groups, device=slots.device).view(1, -1, 1) * groups.group_tokens
    rows = slots + first
    empty = (slots < 0) | (rows >= groups.num_tokens)
    return rows.masked_fill(empty, 0), empty


def grouped_keys(tokens: Tensor, groups: ModalityGroups, mask_padding: bool) -> Keys:
    """All tokens ``[B, T, E]`` of a modality as its groups' keys ``[B, g, l, E]``.

    Slots after the modality's end are zero vectors, and so are the further slots up to the length all groups share; those
    are equal keys in every group, so one key with ``+ log n`` stands for them. Padding is attended to, as in the original,
    unless ``mask_padding`` hides it.
    """
    if groups.final_padding:
        tokens = pad(tokens, (0, 0, 0, groups.final_padding))
    values = tokens.view(tokens.shape[0], groups.groups, groups.group_tokens, -1)
    if mask_padding:
        return Keys(values, _hide_final_padding(groups, tokens.device) if groups.final_padding else None)
    if groups.group_padding == 0:
        return Keys(values)
    bias = torch.zeros(1, 1, 1, groups.group_tokens + 1, device=tokens.device)
    bias[..., -1] = math.log(groups.group_padding)
    return Keys(pad(values, (0, 0, 0, 1)), bias)


def selected_keys(tokens: Tensor, empty: Tensor, groups: ModalityGroups, mask_padding: bool, has_empty: bool) -> Keys:
    """Visible tokens ``[B, g, v, E]`` as keys: empty slots hidden, all padding of a group as one key with ``+ log n``."""
    padded = not mask_padding and groups.group_padding + groups.final_padding > 0
    if not padded:
        return Keys(tokens, hidden_scores(empty) if has_empty else None)
    slots = groups.group_tokens + groups.group_padding
    weights = [_log(slots - groups.tokens_in_group(group)) for group in range(groups.groups)]
    pads = torch.tensor(weights, device=tokens.device).view(1, -1, 1, 1).expand(empty.shape[0], -1, -1, -1)
    return Keys(pad(tokens, (0, 0, 0, 1)), torch.cat([hidden_scores(empty), pads], dim=-1))


def grouped_queries(code: Tensor, groups: ModalityGroups) -> Tensor:
    """Position codes ``[T, E]`` of all tokens as their groups' queries ``[1, g, l, E]``."""
    if groups.final_padding:
        code = pad(code, (0, 0, 0, groups.final_padding))
    return code.view(1, groups.groups, groups.group_tokens, -1)


def ungroup(answers: Tensor, groups: ModalityGroups) -> Tensor:
    """``[B, g, l, E] -> [B, T, E]``: groups joined in order, the padding cut off."""
    return answers.flatten(1, 2)[:, : groups.num_tokens]


def query_parts(model: TokenModel, selection: TokenSelection | None, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reconstruction queries of every modality, ``[B or 1, g, q, E]``."""
    if selection is None:
        return {part.name: grouped_queries(codes[part.name], part) for part in model.group_plan().modalities}
    return {m.name: model.selected_queries(m.name, selection.queries[m.name]) for m in model.modalities}


def hidden_scores(empty: Tensor) -> Tensor:
    """``[B, g, v]`` empty slots as the bias of keys ``[B, g, 1, v]``."""
    scores = torch.zeros(empty.shape, device=empty.device)
    return scores.masked_fill(empty, HIDDEN_SCORE).unsqueeze(2)


def _hide_final_padding(groups: ModalityGroups, device: torch.device) -> Tensor:
    slot = torch.arange(groups.groups * groups.group_tokens, device=device)
    return hidden_scores((slot >= groups.num_tokens).view(1, groups.groups, groups.group_tokens))


def _log(count: int) -> float:
    return math.log(count) if count else HIDDEN_SCORE


def check_inputs(inputs: Mapping[str, Tensor], modalities: Sequence[Modality], device: torch.device) -> None:
    """Raise InputError for a modality, length, channel count, batch, dtype, device or value that does not fit.

    NaN is looked for on CPU and outside compiled graphs only, where looking is cheap and stalls nothing.
    """
    expected = [modality.name for modality in modalities]
    if set(inputs) != set(expected):
        raise InputError(f"inputs are {sorted(inputs)}, this model takes {sorted(expected)}")
    for modality in modalities:
        _check_layout(modality, inputs[modality.name], device)
    batches = {name: inputs[name].shape[0] for name in expected}
    if any(size != batches[expected[0]] for size in batches.values()):  # not a set: sizes are symbols under export
        raise InputError(f"all modalities need the same batch size, got {batches}")
    if device.type == "cpu" and not torch.compiler.is_compiling():
        for modality in modalities:
            _check_values(modality.name, inputs[modality.name])


def _check_layout(modality: Modality, values: Tensor, device: torch.device) -> None:
    name = modality.name
    if values.dim() != 3 or values.shape[1:] != (modality.num_tokens, modality.num_channels):
        wanted = f"[batch, {modality.num_tokens}, {modality.num_channels}]"
        raise InputError(f"modality {name!r} has shape {list(values.shape)}, this model takes {wanted}")
    if not values.dtype.is_floating_point:
        raise InputError(
            f"modality {name!r} has dtype {values.dtype}; convert or normalise it to a floating dtype first"
        )
    if values.device.type != device.type:
        raise InputError(f"modality {name!r} is on {values.device}, the model on {device}; move one of them")


def _check_values(name: str, values: Tensor) -> None:
    # One NaN makes the sum NaN: the exact look is only taken where something is there to be found.
    if not torch.isfinite(values.sum()) and (count := int(torch.isnan(values).sum())):
        raise InputError(f"modality {name!r} has {count} NaN of {values.numel()} values; replace or drop them first")
