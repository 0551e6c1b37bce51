"""How many tokens a mask asks back from each example; positions are drawn only where the number follows the draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hip_model.grouping import GroupPlan, ModalityGroups
from hip_model.masking import (
    MaskConfig,
    Presence,
    draw_positions,
    hidden_modality,
    is_video,
    presence_of,
    restrict_positions,
)
from hip_model.modality import Modality
from hip_model.selection import EMPTY_SLOT


def has_equal_counts(
    config: MaskConfig,
    modalities: Sequence[Modality],
    plan: GroupPlan | Mapping[str, ModalityGroups],
    query_all: bool = False,
) -> bool:
    """Whether all examples that have a modality are asked for the same number of its tokens."""
    if query_all:
        return True
    if config.policy == "modality":
        return False
    return all(_known_count(config, modality, plan[modality.name]) is not None for modality in modalities)


def count_queries(
    config: MaskConfig,
    modalities: Sequence[Modality],
    plan: GroupPlan | Mapping[str, ModalityGroups],
    seeds: Tensor,
    query_all: bool = False,
    present: Presence | None = None,
) -> dict[str, Tensor]:
    """Tokens of each modality, int64 ``[B]``, in the queries of ``sample_selection`` with the same arguments."""
    names = [modality.name for modality in modalities]
    hidden = hidden_modality(config, names, seeds, present) if config.policy == "modality" else {}
    counts = {}
    for modality in modalities:
        name, groups = modality.name, plan[modality.name]
        known = groups.num_tokens if query_all else _known_count(config, modality, groups)
        count = _drawn_counts(config, modality, groups, seeds) if known is None else torch.full_like(seeds, known)
        if name in hidden:
            count = torch.where(hidden[name], groups.num_tokens, count)
        counts[name] = count * presence_of(present, name, seeds)
    return counts


def _known_count(config: MaskConfig, modality: Modality, groups: ModalityGroups) -> int | None:
    """Queried tokens of any example in which the modality is not hidden whole; None where they follow the draw."""
    name, length = modality.name, groups.group_tokens
    ratio = config.ratio_of(name)
    if ratio in (0, 1):
        return int(ratio) * groups.num_tokens
    if config.policy == "tube" and is_video(modality):
        assert modality.shape is not None
        frames, height, width = modality.shape
        return groups.num_tokens - frames * config.visible_tokens(name, height * width)
    if length == 1:  # hidden whole or not at all
        return None
    visible = config.visible_tokens(name, length)
    if groups.final_padding and config.policy != "attention":  # padding is drawn like any position
        return None
    return groups.num_tokens - sum(min(visible, groups.tokens_in_group(group)) for group in range(groups.groups))


def _drawn_counts(config: MaskConfig, modality: Modality, groups: ModalityGroups, seeds: Tensor) -> Tensor:
    _, asked = draw_positions(config, modality, groups, seeds, None)
    asked = restrict_positions(asked, groups, None)
    return (asked != EMPTY_SLOT).sum(dim=(1, 2)) * (groups.groups // asked.shape[1])
