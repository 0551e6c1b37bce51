"""Raw arrays to embedded, positioned, grouped tokens, and back: what all models of this package do at both ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hip_model.attention import CrossAttention, Keys, LazyKeys
from hip_model.attention import hidden_scores as hidden_scores
from hip_model.config import HiPConfig, PerceiverIOConfig
from hip_model.errors import ConfigError, InputError
from hip_model.grouping import GroupPlan, ModalityGroups
from hip_model.init import Linear
from hip_model.kernels.recompute import recomputed
from hip_model.modality import Modality
from hip_model.pixels import answer_on_device, pixel_keys
from hip_model.positions import build_positions
from hip_model.selection import TokenSelection
from hip_model.token_runs import GroupRun, by_group, group_runs, in_runs, raw_runs, run_groups


@dataclass(frozen=True)
class ModelOutput:
    """``reconstruction[name] [B, T, C]`` (``[B, g*q, C]`` for a selection) and all blocks' ``latents [B, G, N, D]``."""

    reconstruction: dict[str, Tensor]
    latents: list[Tensor]


class TokenModel(nn.Module):
    """Embeddings, position codes and un-embeddings of a fixed list of modalities.

    The modality order is the constructor's, whatever the order of an input dict: it decides who owns which groups.
    """

    def __init__(self, config: HiPConfig | PerceiverIOConfig, modalities: Sequence[Modality], plan: GroupPlan) -> None:
        super().__init__()
        check_names(modalities)
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
        """What positions a modality's tokens and queries their reconstruction: ``[T, E]`` or ``[*rows.shape, E]``."""
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

    def group_codes(self) -> dict[str, Tensor]:
        """Every modality's position codes by group, ``[g, l, E]``, zeros after its last token."""
        return {part.name: by_group(self.position_code(part.name), part) for part in self._plan.modalities}

    def token_keys(
        self, inputs: Mapping[str, Tensor], codes: Mapping[str, Tensor], selection: TokenSelection | None, hide: bool
    ) -> list[LazyKeys]:
        """What the groups of the first block look at, embedded when it gets to them; ``hide``: not at padding."""
        has_empty = selection is not None and selection.has_empty_slots
        keys = []
        for part in self._plan.modalities:
            values = inputs[part.name]
            slots = None if selection is None else selection.visible[part.name]
            pixels = pixel_keys(values, codes[part.name], part, slots, self.embed[part.name], hide, has_empty)
            # One pass over the pixels keeps none of them: nothing to cut into runs.
            size = run_groups(values.shape[0], part, slots, values.device) if pixels is None else part.groups
            runs = group_runs(codes[part.name], part, slots, size)
            for run, raw in zip(runs, raw_runs(values, part, size), strict=True):
                build = partial(run.keys, raw, partial(self.embed_tokens, part.name), hide, has_empty)
                keys.append(
                    LazyKeys(values.shape[0], run.groups, run.per_group, build, recompute=len(runs) > 1, pixels=pixels)
                )
        return keys

    def answer_queries(
        self,
        head: CrossAttention,
        latents: Tensor,
        codes: Mapping[str, Tensor],
        selection: TokenSelection | None,
    ) -> dict[str, Tensor]:
        """Position queries answered from ``latents``, whose groups are the tokens' or one for all: ``[B, n, C]``."""
        result = {}
        for part in self._plan.modalities:
            own = latents[:, part.offset : part.offset + part.groups]
            slots = None if selection is None else selection.queries[part.name]
            unembed, code = self.unembed[part.name], codes[part.name]
            answers = answer_on_device(head, unembed, code, part, slots, own)
            if answers is None:
                answers = self._answer_in_runs(head, unembed, code, part, slots, own)
            answers = answers.flatten(1, 2)
            result[part.name] = answers[:, : part.num_tokens] if selection is None else answers
        return result

    def _answer_in_runs(
        self,
        head: CrossAttention,
        unembed: nn.Module,
        code: Tensor,
        part: ModalityGroups,
        slots: Tensor | None,
        latents: Tensor,
    ) -> Tensor:
        """One modality's answers ``[B, g, s, C]``, a run of groups at a time."""
        size = run_groups(latents.shape[0], part, slots, latents.device, asking=True)
        runs = group_runs(code, part, slots, size)
        answer = partial(self._answer, head, unembed)
        parts = [
            recomputed(answer, run, source, keep=len(runs) == 1)
            for run, source in zip(runs, in_runs(latents, size, dim=1), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @staticmethod
    def _answer(head: CrossAttention, unembed: nn.Module, run: GroupRun, latents: Tensor) -> Tensor:
        answers: Tensor = unembed(head(run.queries(), [Keys(latents)]))
        return answers


def token_rows(groups: ModalityGroups, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Token indices of group slots, safe to index with, and which slots hold no token: both ``[B or 1, groups, s]``."""
    first = torch.arange(groups.groups, device=slots.device).view(1, -1, 1) * groups.group_tokens
    rows = slots + first
    empty = (slots < 0) | (rows >= groups.num_tokens)
    return rows.masked_fill(empty, 0), empty


def check_names(modalities: Sequence[Modality]) -> None:
    """Raise ConfigError for no modalities, a name given twice, or one that a module cannot keep its parts under."""
    names = [modality.name for modality in modalities]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"a model needs one or more modalities with different names, got {names}")
    taken = nn.ModuleDict()
    for name in names:
        if not name or "." in name or hasattr(taken, name):
            fitting = f"{name}_0" if hasattr(taken, name) else name.replace(".", "_")
            raise ConfigError(
                f"modality name {name!r} cannot name a part of a model (it is empty, has a dot, or is one of PyTorch's "
                f"own such as 'keys'); use a name like {fitting or 'image'!r}"
            )


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
