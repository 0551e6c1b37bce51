"""Masked autoencoding: hide tokens, run the model, score what it says about the hidden ones (HiP paper, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hip_model.attention_scores import attention_scores
from hip_model.class_bottleneck import ClassBottleneckHiP
from hip_model.errors import ConfigError, InputError
from hip_model.kernels.device import has_device_kernels
from hip_model.kernels.pixel_scores import can_score, squared_errors
from hip_model.mask_counts import count_queries, has_equal_counts
from hip_model.masking import MaskConfig, Presence, sample_selection
from hip_model.modality import Modality
from hip_model.normalisation import Normalisation
from hip_model.pixels import token_slots
from hip_model.selection import TokenSelection
from hip_model.tokens import ModelOutput, token_rows

LOSS_TARGETS = ("masked", "all")


@dataclass(frozen=True)
class LossConfig:
    """What the loss is taken over, and how modalities are weighed against each other.

    Raises:
        ConfigError: an unknown target, or a negative weight.
    """

    on: str = "masked"
    """``masked``: only what the model did not see; ``all``: visible tokens too."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of single modalities, 1 where not named; the loss is the weighted mean over modalities."""

    def __post_init__(self) -> None:
        if self.on not in LOSS_TARGETS:
            raise ConfigError(f"loss.on={self.on!r} is unknown; choose one of {', '.join(LOSS_TARGETS)}")
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise ConfigError(f"loss weight of modality {name!r} must be 0 or more, got {weight}")

    def check(self, mask: MaskConfig, modalities: Sequence[Modality]) -> None:
        """Whether these modalities, masked so, leave something to learn.

        Raises:
            ConfigError: a weight for a modality that does not exist, or every modality is without weight, or is neither
                hidden nor scored.
        """
        names = [modality.name for modality in modalities]
        if unknown := sorted(set(self.weights) - set(names)):
            raise ConfigError(f"loss weights name {', '.join(unknown)}, but the modalities are {', '.join(names)}")
        weighed = [name for name in names if self.weights.get(name, 1) > 0]
        if not weighed:
            raise ConfigError(f"loss weight 0 for {', '.join(names)} leaves nothing to learn; give one of them more")
        if self.on == "masked" and not any(mask.ratio_of(name) > 0 for name in weighed):
            raise ConfigError(
                f"mask ratio 0 for {', '.join(weighed)} leaves nothing to learn from hidden tokens; "
                "hide some, or score all tokens with loss.on=all"
            )


@dataclass(frozen=True)
class MAEOutput:
    """Losses of one batch, in normalised units unless said otherwise. A modality no example has counts as loss 0."""

    loss: Tensor
    """Weighted mean of ``per_modality_loss`` over the modalities present in the batch; what to minimise."""
    per_modality_loss: dict[str, Tensor]
    """Mean squared error per value of each modality, unweighted; scalars."""
    per_modality_squared_error: dict[str, Tensor]
    """The same per channel, ``[C]``."""
    psnr: dict[str, Tensor]
    """Peak signal-to-noise ratio in dB, raw units (see Normalisation.psnr); NaN where no example has the modality."""
    scored_tokens: dict[str, Tensor]
    """How many tokens each of those means is over; scalars, to average over batches with."""
    reconstruction: dict[str, Tensor]
    """The model's answers ``[B, g*q, C]`` in slot order of ``selection.queries``."""
    selection: TokenSelection


@dataclass(frozen=True)
class Reconstruction:
    """What figures show, per modality: all in raw units, tokens in the modality's order."""

    reconstruction: dict[str, Tensor]
    """The model's answer for every token ``[B, T, C]``, float32, neither rounded nor clipped."""
    raw: dict[str, Tensor]
    """What the batch held, ``[B, T, C]``."""
    visible: dict[str, Tensor]
    """Which tokens the model saw, bool ``[B, T]``."""


class MaskedAutoencoder(nn.Module):
    """A model of this package with a mask before and a loss behind it.

    ``normalisation[name]`` turns integer (raw) inputs into what the model takes; float inputs are taken as normalised
    unless the normalisation's ``raw_dtype`` is a float type. Target and prediction are compared in normalised units.

    Raises:
        ConfigError: a normalisation for a modality the model does not have, or a mask or a loss that does not fit its
            modalities (:meth:`MaskConfig.check`, :meth:`LossConfig.check`).
    """

    def __init__(
        self,
        model: Any,
        mask: MaskConfig | None = None,
        loss: LossConfig | None = None,
        normalisation: Mapping[str, Normalisation] | None = None,
    ) -> None:
        super().__init__()
        # HiP, PerceiverIO or Perceiver: one call surface.
        self.model: Any = model
        self.mask = mask or MaskConfig()
        self.loss = loss or LossConfig()
        given = dict(normalisation or {})
        # The labels of a ClassBottleneckHiP are masked and scored as modalities are.
        has_labels = isinstance(model, ClassBottleneckHiP)
        self._modalities: tuple[Modality, ...] = (*model.modalities, *(model.labels if has_labels else ()))
        labels = model.label_groups() if has_labels else ()
        self._groups = {groups.name: groups for groups in (*model.group_plan().modalities, *labels)}
        names = [modality.name for modality in self._modalities]
        if unknown := sorted(set(given) - set(names)):
            raise ConfigError(f"normalisations name {', '.join(unknown)}, but the modalities are {', '.join(names)}")
        self.mask.check(self._modalities)
        self.loss.check(self.mask, self._modalities)
        self.normalisation = {
            m.name: given.get(m.name, Normalisation.identity(m.num_channels)) for m in self._modalities
        }
        self._has_statistics = set(given)

    def forward(self, inputs: Mapping[str, Tensor], mask_seed: Tensor, present: Presence | None = None) -> MAEOutput:
        """Mask, reconstruct and score a batch.

        ``inputs[name]`` is ``[B, T, C]`` raw integers or normalised floats; ``mask_seed`` int64 ``[B]`` (see
        mask_seeds). ``present[name]`` bool ``[B]`` tells which examples have the modality: the others' tokens neither
        enter nor count; None says that nobody has it, which costs one slot instead of all. Leave it out when all have
        everything: attention then needs no mask.

        Raises:
            InputError: inputs that do not fit the model, or raw integers without a normalisation.
        """
        values = self._normalised(inputs)
        selection = self._select(values, mask_seed, self.loss.on == "all", present)
        output: ModelOutput = self.model(values, selection)
        sums = {name: self._score(name, values[name], output.reconstruction[name], selection) for name in values}
        per_channel = {name: errors / count.clamp_min(1) for name, (errors, count) in sums.items()}
        losses = {name: errors.mean() for name, errors in per_channel.items()}
        counts = {name: count for name, (_, count) in sums.items()}
        return MAEOutput(
            loss=self._total(losses, counts),
            per_modality_loss=losses,
            per_modality_squared_error=per_channel,
            psnr=self._psnr(per_channel, counts, inputs),
            scored_tokens=counts,
            reconstruction=output.reconstruction,
            selection=selection,
        )

    @property
    def has_equal_counts(self) -> bool:
        """Whether ``forward`` scores the same number of tokens of all examples that have a modality."""
        return has_equal_counts(self.mask, self._modalities, self._groups, self.loss.on == "all")

    def count_scored(self, mask_seed: Tensor, present: Presence | None = None) -> dict[str, Tensor]:
        """How many tokens of each example ``forward`` scores, by modality, int64 ``[B]``; arguments as there."""
        return count_queries(self.mask, self._modalities, self._groups, mask_seed, self.loss.on == "all", present)

    @torch.no_grad()
    def reconstruct(
        self, inputs: Mapping[str, Tensor], mask_seed: Tensor, present: Presence | None = None
    ) -> Reconstruction:
        """Every token of every modality from the visible ones, in evaluation mode, in raw units.

        Arguments and errors as for ``forward``.
        """
        values = self._normalised(inputs)
        selection = self._select(values, mask_seed, True, None)
        shown = self._select(values, mask_seed, False, present)
        was_training = self.model.training
        self.model.eval()
        try:
            output = self.model(values, TokenSelection(shown.visible, selection.queries, shown.has_empty_slots))
        finally:
            self.model.train(was_training)
        full, raw, visible = {}, {}, {}
        for name, value in values.items():
            tokens = value.shape[1]
            full[name] = self.normalisation[name].denormalise(output.reconstruction[name][:, :tokens])
            is_raw = value is not inputs[name]
            raw[name] = inputs[name] if is_raw else self.normalisation[name].denormalise(value)
            visible[name] = self._visible_tokens(name, shown.visible[name], len(value))
        return Reconstruction(full, raw, visible)

    def _normalised(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = {}
        for modality in self._modalities:
            if modality.name not in inputs:
                wanted = ", ".join(known.name for known in self._modalities)
                raise InputError(f"modality {modality.name!r} is missing from the inputs; this model takes {wanted}")
            given = inputs[modality.name]
            if not given.is_floating_point() and modality.name not in self._has_statistics:
                raise InputError(
                    f"modality {modality.name!r} is {given.dtype} without a normalisation; give its mean and std, or "
                    "normalised floats"
                )
            values[modality.name] = self.normalisation[modality.name].normalise(given)
        return values

    def _select(
        self, values: Mapping[str, Tensor], seeds: Tensor, query_all: bool, present: Presence | None
    ) -> TokenSelection:
        scores = attention_scores(self.model, values) if self.mask.policy == "attention" else None
        return sample_selection(self.mask, self._modalities, self._groups, seeds, query_all, present, scores)

    def _score(self, name: str, values: Tensor, answers: Tensor, selection: TokenSelection) -> tuple[Tensor, Tensor]:
        """Squared errors summed over the queried tokens, per channel ``[C]``, and how many tokens that is."""
        groups, slots = self._groups[name], selection.queries[name]
        on_device = has_device_kernels(values) and can_score(values)
        if on_device and not selection.has_empty_slots:  # nothing to count
            count = torch.full((), answers.shape[:2].numel(), device=values.device)
            return squared_errors(answers, values, token_slots(groups, slots, len(values))), count
        rows, empty = token_rows(groups, slots)
        rows, empty = rows.flatten(1), empty.flatten(1)
        count = (~empty).sum() * (len(values) // len(rows))
        if on_device:
            return squared_errors(answers, values, token_slots(groups, slots, len(values))), count
        if len(rows) == 1:
            target = values.index_select(1, rows[0])
        else:
            target = values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))
        squared = (answers.float() - target.float()).square()
        if selection.has_empty_slots:
            squared = squared.masked_fill(empty[..., None], 0.0)
        return squared.sum(dim=(0, 1)), count

    def _total(self, losses: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> Tensor:
        weights = {name: self.loss.weights.get(name, 1.0) * (counts[name] > 0) for name in losses}
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return total / torch.stack(list(weights.values())).sum().clamp_min(1e-12)

    @torch.no_grad()
    def _psnr(
        self, errors: Mapping[str, Tensor], counts: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        decibel = {name: self.normalisation[name].psnr(error, inputs[name].dtype) for name, error in errors.items()}
        return {name: value.masked_fill(counts[name] == 0, torch.nan) for name, value in decibel.items()}

    def _visible_tokens(self, name: str, slots: Tensor, batch: int) -> Tensor:
        """Visible slots ``[B or 1, g or 1, v]`` as flags per token, bool ``[B, T]``."""
        groups = self._groups[name]
        rows, empty = token_rows(groups, slots)
        rows = rows.masked_fill(empty, groups.num_tokens).flatten(1).expand(batch, -1)
        flags = torch.zeros(batch, groups.num_tokens + 1, dtype=torch.bool, device=rows.device)
        return flags.scatter(1, rows, True)[:, : groups.num_tokens]
