"""HiP whose labels skip the hierarchy: they enter and leave at the processor (the release's ``HiPClassBottleneck``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hip_model.attention import CrossAttention, Keys, hidden_scores
from hip_model.config import HiPConfig
from hip_model.errors import ConfigError
from hip_model.grouping import ModalityGroups
from hip_model.hip import HiP
from hip_model.init import Linear, Table
from hip_model.modality import Modality
from hip_model.selection import TokenSelection
from hip_model.tokens import ModelOutput, check_inputs, check_names, token_rows


class ClassBottleneckHiP(HiP):
    """A HiP over ``modalities`` with ``labels`` that join the processor's input and are answered from its output.

    Labels are dense arrays such as one-hot rows ``[B, 1, classes]``; the model has no softmax and no cross-entropy.
    In a selection a label is one group of all its tokens; a label it does not name is visible and answered whole.

    Raises:
        ConfigError: modalities, labels and config do not fit together.
    """

    def __init__(self, config: HiPConfig, modalities: Sequence[Modality], labels: Sequence[Modality]) -> None:
        super().__init__(config, modalities)
        if not labels:
            raise ConfigError("a class-bottleneck model needs one label or more, got none; without labels use HiP")
        check_names((*modalities, *labels))
        self.labels = tuple(labels)
        # Labels join the array the processor attends to, so they have its width.
        width = config.input_channels(config.processor)
        self.label_embed = nn.ModuleDict({label.name: Linear(label.num_channels, width) for label in labels})
        self.label_positions = nn.ModuleDict({label.name: Table(label.num_tokens, width) for label in labels})
        self.label_unembed = nn.ModuleDict(
            {label.name: Linear(width, label.num_channels, zero=True) for label in labels}
        )
        self.label_head = CrossAttention(width, config.num_channels[config.processor], 1, 1, residual=False)

    def label_groups(self) -> tuple[ModalityGroups, ...]:
        """Each label as a group of its own, for those who draw selections."""
        return tuple(ModalityGroups(m.name, m.num_tokens, 0, 1, m.num_tokens, 0) for m in self.labels)

    def forward(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> ModelOutput:
        """As ``HiP.forward``, labels included in inputs and reconstruction (last)."""
        codes = self.group_codes()
        keys = self._token_keys(self._without_labels(inputs), codes, selection)
        latents = self._levels(keys, self.config.num_blocks, self._label_keys(inputs, selection))
        answers = self.answer_queries(self.head, latents[-1], codes, selection)
        return ModelOutput(answers | self._reconstruct_labels(latents, selection), latents)

    def encode(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> list[Tensor]:
        """As ``HiP.encode``; the labels take part."""
        keys = self._token_keys(self._without_labels(inputs), self.group_codes(), selection)
        return self._levels(keys, self.config.processor + 1, self._label_keys(inputs, selection))

    def _without_labels(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        check_inputs(inputs, (*self.modalities, *self.labels), self.label_head.output.weight.device)
        return {modality.name: inputs[modality.name] for modality in self.modalities}

    def _label_keys(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None) -> Keys:
        """All labels' visible tokens, embedded and positioned: ``[B, 1, tokens, W]``."""
        parts = [self._label_part(part, inputs[part.name], selection) for part in self.label_groups()]
        batch = parts[0].values.shape[0]
        values = torch.cat([part.values for part in parts], dim=2)
        if selection is None or not selection.has_empty_slots:
            return Keys(values)
        return Keys(values, torch.cat([_bias(part, batch) for part in parts], dim=-1))

    def _label_part(self, part: ModalityGroups, values: Tensor, selection: TokenSelection | None) -> Keys:
        embedded = self.label_embed[part.name](values.to(self.label_head.output.weight.dtype))
        tokens = (embedded + self.label_positions[part.name]()).unsqueeze(1)
        if selection is None or part.name not in selection.visible:
            return Keys(tokens)
        rows, empty = token_rows(part, selection.visible[part.name])
        batch, width = tokens.shape[0], tokens.shape[-1]
        chosen = tokens.gather(2, rows.unsqueeze(-1).expand(batch, -1, -1, width))
        return Keys(chosen, hidden_scores(empty))

    def _reconstruct_labels(self, latents: Sequence[Tensor], selection: TokenSelection | None) -> dict[str, Tensor]:
        result = {}
        for part in self.label_groups():
            rows = None
            if selection is not None and part.name in selection.queries:
                rows, _ = token_rows(part, selection.queries[part.name])
            code = self.label_positions[part.name](rows)
            queries = code.view(1, 1, *code.shape) if rows is None else code
            answers = self.label_head(queries, [Keys(latents[self.config.processor])])
            result[part.name] = self.label_unembed[part.name](answers).flatten(1, 2)
        return result


def _bias(part: Keys, batch: int) -> Tensor:
    if part.bias is None:
        return part.values.new_zeros(batch, 1, 1, part.values.shape[2], dtype=torch.float32)
    return part.bias.expand(batch, -1, -1, -1)
