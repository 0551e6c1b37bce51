"""Hierarchical Perceiver (arXiv 2202.10890): local groups merge level by level into one processor, and split again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from hip_model.attention import CrossAttention, Keys
from hip_model.blocks import Block
from hip_model.config import HiPConfig
from hip_model.grouping import plan_groups, regroup
from hip_model.modality import Modality
from hip_model.selection import TokenSelection
from hip_model.tokens import ModelOutput, TokenModel, grouped_keys, query_parts, selected_keys, ungroup


class HiP(TokenModel):
    """Blocks of latents over grouped tokens, and a head that answers position queries from the last block.

    Raises:
        ConfigError: modalities and config do not fit together.
    """

    def __init__(self, config: HiPConfig, modalities: Sequence[Modality]) -> None:
        super().__init__(config, modalities, plan_groups(config.num_groups[0], modalities))
        self.config = config
        self.blocks = nn.ModuleList(_block(config, index) for index in range(config.num_blocks))
        # One head and no residual, whatever the blocks have.
        self.head = CrossAttention(config.embedding_channels, config.num_channels[-1], 1, 1, residual=False)

    def forward(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> ModelOutput:
        """Reconstruct every token, or with a ``selection`` its queries from its visible tokens.

        ``inputs[name]`` is ``[B, tokens, channels]``. Rows of the reconstruction that belong to empty query slots are arbitrary.

        Raises:
            InputError: inputs that do not fit the modalities.
        """
        codes = self._codes(selection)
        latents = self._levels(self._token_keys(inputs, codes, selection), self.config.num_blocks)
        return ModelOutput(self._reconstruct(latents[-1], codes, selection), latents)

    def encode(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> list[Tensor]:
        """Outputs ``[B, G, N, D]`` of the blocks up to and including the processor, for probes and embeddings."""
        keys = self._token_keys(inputs, self._codes(selection), selection)
        return self._levels(keys, self.config.processor + 1)

    def _codes(self, selection: TokenSelection | None) -> dict[str, Tensor]:
        return {} if selection is not None else {m.name: self.position_code(m.name) for m in self.modalities}

    def _token_keys(
        self, inputs: Mapping[str, Tensor], codes: Mapping[str, Tensor], selection: TokenSelection | None
    ) -> list[Keys]:
        self.check_inputs(inputs)
        parts = self.group_plan().modalities
        hide = self.config.mask_padding
        if selection is None:
            tokens = self.full_tokens(inputs, codes)
            return [grouped_keys(tokens[part.name], part, hide) for part in parts]
        keys = []
        for part in parts:
            visible, empty = self.selected_tokens(part.name, inputs[part.name], selection.visible[part.name])
            keys.append(selected_keys(visible, empty, part, hide, selection.has_empty_slots))
        return keys

    def _levels(self, keys: Sequence[Keys], num_blocks: int, labels: Keys | None = None) -> list[Tensor]:
        """Outputs of the first ``num_blocks`` blocks; decoder blocks add the output of their mirror in the encoder.

        ``labels [B, 1, t, D]`` join what the processor attends to.
        """
        outputs: list[Tensor] = []
        last = len(self.blocks) - 1
        for index in range(num_blocks):
            if index > 0:
                below = regroup(outputs[-1], self.config.num_groups[index], self.config.regroup)
                at_processor = index == self.config.processor
                keys = [_join(below, labels) if labels is not None and at_processor else Keys(below)]
            skip = outputs[last - index] if index > self.config.processor else None
            outputs.append(self._run_block(self.blocks[index], keys, skip))
        return outputs

    def _run_block(self, block: nn.Module, keys: Sequence[Keys], skip: Tensor | None) -> Tensor:
        if self.config.activation_checkpointing == "none" or not self.training:
            return block(keys, skip)
        return checkpoint(block, keys, skip, use_reentrant=False)

    def _reconstruct(
        self, latents: Tensor, codes: Mapping[str, Tensor], selection: TokenSelection | None
    ) -> dict[str, Tensor]:
        queries = query_parts(self, selection, codes)
        result = {}
        for part in self.group_plan().modalities:
            source = latents[:, part.offset : part.offset + part.groups]
            answers = self.unembed[part.name](self.head(queries[part.name], [Keys(source)]))
            result[part.name] = ungroup(answers, part) if selection is None else answers.flatten(1, 2)
        return result


def _join(below: Tensor, labels: Keys) -> Keys:
    values = torch.cat([below, labels.values], dim=2)
    if labels.bias is None:
        return Keys(values)
    return Keys(values, pad(labels.bias, (below.shape[2], 0)))


def _block(config: HiPConfig, index: int) -> Block:
    train_latents, latents = config.num_latents[index], config.num_latents[index]
    if index == config.processor:
        train_latents, latents = config.processor_latent_counts
    return Block(
        num_groups=config.num_groups[index],
        num_latents=latents,
        train_latents=train_latents,
        channels=config.num_channels[index],
        input_channels=config.input_channels(index),
        layers=config.num_self_attention_layers[index],
        cross_heads=config.num_cross_attention_heads[index],
        self_heads=config.num_self_attention_heads[index],
        cross_widening=config.cross_attention_widening[index],
        self_widening=config.self_attention_widening[index],
        skip_channels=config.num_channels[config.num_blocks - 1 - index] if index > config.processor else None,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )
