"""Which tokens a masked autoencoder sees: a pure function of (seed, epoch, example id), not of batch or worker.

Masked tokens are dropped from the input and their positions are asked back. HiP draws one pattern per example and
uses it in all groups, so every group keeps the same number of tokens. All randomness is a hash of the example's seed
and the token's position (hip_model.random_bits): no generator state, the same on every device.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from hip_model.errors import ConfigError, InputError
from hip_model.grouping import GroupPlan, ModalityGroups
from hip_model.modality import Modality
from hip_model.ordering import token_order
from hip_model.random_bits import as_int64, mix, random_bits, unit_interval
from hip_model.selection import EMPTY_SLOT, TokenSelection

MASK_POLICIES = ("group_uniform", "independent", "tube", "modality", "attention")


@dataclass(frozen=True)
class MaskConfig:
    """How tokens are hidden.

    Policies: ``group_uniform``, one random in-group pattern for all groups of an example (the paper's);
    ``independent``, a pattern per group; ``tube``, one spatial pattern for all frames of every modality shaped
    (frames, height, width), the others as group_uniform; ``modality``, one modality of each example hidden whole, the
    others as group_uniform; ``attention``, the tokens that the model's own first cross-attention looks at most, with
    Gumbel noise (SMA, arXiv 2402.14789).

    Raises:
        ConfigError: an unknown policy, or a ratio outside (0, 1), or outside [0, 1] for a single modality.
    """

    policy: str = "group_uniform"
    ratio: float = 0.85
    """Share of tokens hidden."""
    per_modality: Mapping[str, float] = field(default_factory=dict)
    """Ratios of single modalities; 1 hides all of it (a label to predict), 0 none."""

    def __post_init__(self) -> None:
        if self.policy not in MASK_POLICIES:
            raise ConfigError(f"mask policy {self.policy!r} is unknown; choose one of {', '.join(MASK_POLICIES)}")
        if not 0 < self.ratio < 1:
            raise ConfigError(f"mask ratio must be above 0 and below 1, got {self.ratio}; the paper's is about 0.85")
        for name, ratio in self.per_modality.items():
            if not 0 <= ratio <= 1:
                raise ConfigError(f"mask ratio of modality {name!r} must be within 0 and 1, got {ratio}")

    def check(self, modalities: Sequence[Modality]) -> None:
        """Whether these modalities can be masked so.

        Raises:
            ConfigError: a ratio for a modality that does not exist, policy ``tube`` without any video-shaped modality,
                policy ``modality`` with only one, or nothing that stays visible.
        """
        names = [modality.name for modality in modalities]
        if unknown := sorted(set(self.per_modality) - set(names)):
            raise ConfigError(f"mask ratios name {', '.join(unknown)}, but the modalities are {', '.join(names)}")
        if self.policy == "tube" and not any(is_video(modality) for modality in modalities):
            raise ConfigError(
                "mask policy 'tube' needs a modality with shape (frames, height, width); use 'group_uniform'"
            )
        seen = [name for name in names if self.ratio_of(name) < 1]
        if not seen:
            raise ConfigError(f"mask ratio 1 for {', '.join(names)} leaves nothing to see; put one of them below 1")
        if self.policy == "modality" and len(seen) < 2:
            raise ConfigError(
                f"mask policy 'modality' hides one modality and shows another, but only {seen[0]} may be seen; "
                "use 'group_uniform'"
            )

    def ratio_of(self, name: str) -> float:
        """The mask ratio in force for one modality."""
        return float(self.per_modality.get(name, self.ratio))

    def visible_tokens(self, name: str, group_tokens: int) -> int:
        """Tokens of a group that stay visible: ``round((1 - ratio) * group_tokens)``, at least 1 but for ratio 1."""
        ratio = self.ratio_of(name)
        return 0 if ratio == 1 else max(1, round((1 - ratio) * group_tokens))


def mask_seeds(seed: int, epochs: Tensor, example_ids: Tensor) -> Tensor:
    """One int64 seed per example, ``[B]``, from the run's seed, the epochs ``[B]`` and the example ids ``[B]``."""
    epochs, example_ids, bits = epochs.to(torch.int64), example_ids.to(torch.int64), _run_bits(seed)
    if epochs.device.type == "cpu" and not torch.compiler.is_compiling():  # two dozen operations on a few numbers each
        return torch.from_numpy(mix(mix(epochs.numpy() ^ bits) ^ example_ids.numpy()))
    return mix(mix(epochs ^ bits) ^ example_ids)


@lru_cache(maxsize=8)
def _run_bits(seed: int) -> int:
    return int(mix(torch.tensor(as_int64(seed))))


Presence = Mapping[str, Tensor | None]
"""Which examples have a modality: bool ``[B]``, or None where nobody has it. Who is not named is everywhere."""


def sample_selection(
    config: MaskConfig,
    modalities: Sequence[Modality],
    plan: GroupPlan | Mapping[str, ModalityGroups],
    seeds: Tensor,
    query_all: bool = False,
    present: Presence | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> TokenSelection:
    """Draw visible and queried tokens for each example's seed ``[B]`` (int64; see :func:`mask_seeds`).

    Queries are the masked tokens, or every token with ``query_all``. Where ``present[name]`` is false, the modality's
    slots are all empty; where it is None there is one slot. ``scores[name]`` (``[B, groups or 1, group_tokens]``, not
    negative) is the attention each token received, for policy ``attention`` only. Slot counts are static otherwise, but
    for ``tube``, where they follow the draw.

    Raises:
        ConfigError: modalities that ``config`` does not fit (:meth:`MaskConfig.check`).
        InputError: policy ``attention`` without scores for a modality.
    """
    config.check(modalities)
    names = [modality.name for modality in modalities]
    hidden = hidden_modality(config, names, seeds, present) if config.policy == "modality" else {}
    visible, queries = {}, {}
    for modality in modalities:
        name, groups = modality.name, plan[modality.name]
        here = None if present is None else present.get(name)
        if present is not None and name in present and here is None:
            visible[name] = queries[name] = torch.full((1, 1, 1), EMPTY_SLOT, device=seeds.device)
            continue
        seen, asked = draw_positions(config, modality, groups, seeds, scores)
        if name in hidden:
            seen, asked = _hide(seen, asked, hidden[name], groups.group_tokens)
        if query_all:
            asked = torch.arange(groups.group_tokens, device=seeds.device).expand(1, 1, -1)
        visible[name] = restrict_positions(seen, groups, here)
        queries[name] = restrict_positions(asked, groups, here)
    is_full = config.policy in ("group_uniform", "independent", "attention") and present is None
    is_full = is_full and all(_has_full_slots(config, plan[name]) for name in names)
    return TokenSelection(visible, queries, has_empty_slots=not is_full)


def _has_full_slots(config: MaskConfig, groups: ModalityGroups) -> bool:
    """Whether every group of a modality has the same tokens to draw from and something on both sides of the draw."""
    return groups.final_padding == 0 and groups.group_tokens > 1 and 0 < config.ratio_of(groups.name) < 1


def draw_positions(
    config: MaskConfig, modality: Modality, groups: ModalityGroups, seeds: Tensor, scores: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Visible and masked positions ``[B, groups or 1, slots]`` of one modality, padding not yet removed."""
    base = mix(seeds.to(torch.int64) ^ _stream(modality.name))
    ratio, length = config.ratio_of(modality.name), groups.group_tokens
    count = config.visible_tokens(modality.name, length)
    if config.policy == "tube" and is_video(modality) and 0 < ratio < 1:
        return _draw_tube(modality, groups, ratio, base)
    if config.policy == "attention" and 0 < ratio < 1 and length > 1:
        return _split(_attention_keys(modality, groups, base, scores), count)
    patterns = groups.groups if config.policy == "independent" else 1
    bits = random_bits(base, patterns * length).reshape(-1, patterns, length)
    if length == 1 and 0 < ratio < 1:
        return _draw_single(bits, ratio)
    return _split(bits, count)


def _stream(name: str) -> int:
    """Number of a modality's own random stream: the same whatever other modalities there are."""
    return zlib.crc32(name.encode())


# What torch.compiler.assume_constant_result does, which imports the whole compiler: seconds for every process.
_stream._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _split(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` positions with the smallest keys on the last axis, and the others, each ascending."""
    if keys.device.type == "cpu" and 0 < count < keys.shape[-1] and not torch.compiler.is_compiling():
        # Selecting takes a third of sorting's time; with equal keys at the border only sorting says who is in.
        is_kept = keys <= keys.kthvalue(count, dim=-1, keepdim=True).values
        if int(is_kept.sum()) == keys[..., 0].numel() * count:
            return _positions(is_kept, count), _positions(~is_kept, keys.shape[-1] - count)
    order = keys.argsort(dim=-1, stable=True)
    parts = order[..., :count], order[..., count:]
    # Sorting again, not counting: on a GPU a sum along a row of 262,144 takes longer than both sorts.
    kept, left = (part.sort(dim=-1).values if part.shape[-1] else _empty_slots(order) for part in parts)
    return kept, left


def _positions(flags: Tensor, count: int) -> Tensor:
    """Where the flags ``[..., L]`` are true, ascending, ``count`` in every row: ``[..., count]``."""
    return flags.nonzero()[:, -1].view(*flags.shape[:-1], count)


def _draw_single(bits: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """A group of a single token cannot keep a share of it: it is hidden whole, with probability ``ratio``."""
    is_hidden = unit_interval(bits) < ratio
    return torch.where(is_hidden, EMPTY_SLOT, 0), torch.where(is_hidden, 0, EMPTY_SLOT)


def _draw_tube(modality: Modality, groups: ModalityGroups, ratio: float, base: Tensor) -> tuple[Tensor, Tensor]:
    """One spatial pattern for all frames; a group's counts depend on where it lies, so slots are cut to the longest."""
    assert modality.shape is not None
    cells = modality.shape[1] * modality.shape[2]
    kept, _ = _split(random_bits(base, cells), max(1, round((1 - ratio) * cells)))
    is_kept = torch.zeros(len(base), cells, dtype=torch.bool, device=base.device).scatter_(1, kept, True)
    order = torch.from_numpy(token_order(modality.token_order, modality.shape) % cells).to(base.device)
    is_visible = is_kept[:, order]
    padding = (0, groups.final_padding)
    grouped = (len(base), groups.groups, groups.group_tokens)
    seen = torch.nn.functional.pad(is_visible, padding).reshape(grouped)
    masked = torch.nn.functional.pad(~is_visible, padding).reshape(grouped)
    return _pack(seen), _pack(masked)


def _pack(flags: Tensor) -> Tensor:
    """Positions of the true flags ``[B, G, L]``, ascending, then ``EMPTY_SLOT``, up to the fullest group's count."""
    length = flags.shape[-1]
    # On the meta device (shapes only) there is nothing to count.
    slots = length if flags.is_meta else max(1, int(flags.sum(dim=-1).max()))
    positions = torch.where(flags, torch.arange(length, device=flags.device), length).sort(dim=-1).values[..., :slots]
    return torch.where(positions == length, EMPTY_SLOT, positions)


def _attention_keys(
    modality: Modality, groups: ModalityGroups, base: Tensor, scores: Mapping[str, Tensor] | None
) -> Tensor:
    """Log-scores with Gumbel noise: the largest are masked. Padding counts as most looked at, so it is never chosen."""
    if scores is None or modality.name not in scores:
        raise InputError(f"mask policy 'attention' needs attention scores for modality {modality.name!r}")
    score = scores[modality.name].double()
    bits = random_bits(base, score.shape[1] * score.shape[2]).reshape(len(base), *score.shape[1:])
    gumbel = -torch.log(-torch.log(unit_interval(bits)))
    keys = score.clamp_min(1e-30).log() + gumbel
    limits = _limits(groups, base.device)
    padded = torch.arange(groups.group_tokens, device=base.device) >= limits[:, None]
    return keys.masked_fill(padded[: score.shape[1]], torch.inf)


def hidden_modality(
    config: MaskConfig, names: Sequence[str], seeds: Tensor, present: Presence | None
) -> dict[str, Tensor]:
    """Per modality, whether it is the one hidden whole ``[B]``; none is where fewer than two could be seen."""
    candidates = [name for name in names if config.ratio_of(name) < 1]
    bits = random_bits(mix(seeds.to(torch.int64)), len(candidates)) >> 1 & 0x3FFFFFFFFFFFFFFF
    here = torch.stack([presence_of(present, name, seeds) for name in candidates], dim=1)
    chosen = torch.where(here, bits, -1).argmax(dim=1)
    enough = here.sum(dim=1) > 1
    return {name: (chosen == index) & enough for index, name in enumerate(candidates)}


def presence_of(present: Presence | None, name: str, seeds: Tensor) -> Tensor:
    """Which examples have a modality, bool ``[B]`` on the device of their ``seeds``."""
    here = None if present is None else present.get(name)
    if here is not None:
        return here.to(seeds.device)
    return torch.full_like(seeds, present is None or name not in present, dtype=torch.bool)


def _hide(seen: Tensor, asked: Tensor, hidden: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Where ``hidden`` ``[B]``, nothing is visible and every one of the ``length`` positions is masked."""
    where = hidden[:, None, None]
    asked = torch.nn.functional.pad(asked, (0, length - asked.shape[-1]), value=EMPTY_SLOT)
    everything = torch.arange(length, device=seen.device)
    return torch.where(where, EMPTY_SLOT, seen), torch.where(where, everything, asked)


def restrict_positions(index: Tensor, groups: ModalityGroups, present: Tensor | None) -> Tensor:
    """Empty the slots that point at final padding, and all slots of examples that lack the modality."""
    if groups.final_padding:
        index = torch.where(index < _limits(groups, index.device)[:, None], index, EMPTY_SLOT)
    if present is not None:
        index = torch.where(present.to(index.device)[:, None, None], index, EMPTY_SLOT)
    return index


def _limits(groups: ModalityGroups, device: torch.device) -> Tensor:
    """Real tokens in each of the modality's groups, ``[groups]``."""
    starts = torch.arange(groups.groups, device=device) * groups.group_tokens
    return (groups.num_tokens - starts).clamp(0, groups.group_tokens)


def _empty_slots(like: Tensor) -> Tensor:
    return like.new_full((*like.shape[:-1], 1), EMPTY_SLOT)


def is_video(modality: Modality) -> bool:
    """Whether a modality has the shape (frames, height, width)."""
    return modality.shape is not None and len(modality.shape) == 3
