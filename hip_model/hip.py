"""Hierarchical Perceiver (arXiv 2202.10890): local groups merge level by level into one processor, and split again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from hip_model.attention import CrossAttention, Keys, LazyKeys
from hip_model.blocks import Block
from hip_model.config import HiPConfig
from hip_model.grouping import plan_groups, regroup
from hip_model.modality import Modality
from hip_model.selection import TokenSelection
from hip_model.tokens import ModelOutput, TokenModel


class HiP(TokenModel):
    """Blocks of latents over grouped tokens, and a head that answers position queries from the last block.

    Raises:
        ConfigError: modalities and config do not fit together.
    """

    def __init__(self, config: HiPConfig, modalities: Sequence[Modality]) -> None:
        super().__init__(config, modalities, plan_groups(config.num_groups[0], modalities))
        self.config = config
        self.recompute_blocks = config.activation_checkpointing == "blocks"
        self.blocks = nn.ModuleList(_block(config, index) for index in range(config.num_blocks))
        # One head and no residual, whatever the blocks have.
        self.head = CrossAttention(config.embedding_channels, config.num_channels[-1], 1, 1, residual=False)

    def forward(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> ModelOutput:
        """Reconstruct every token, or with a ``selection`` its queries from its visible tokens.

        ``inputs[name]`` is ``[B, tokens, channels]``. Reconstruction rows of empty query slots are arbitrary.

        Raises:
            InputError: inputs that do not fit the modalities.
        """
        codes = self.group_codes()
        latents = self._levels(self._token_keys(inputs, codes, selection), self.config.num_blocks)
        return ModelOutput(self.answer_queries(self.head, latents[-1], codes, selection), latents)

    def encode(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> list[Tensor]:
        """Outputs ``[B, G, N, D]`` of the blocks up to and including the processor, for probes and embeddings."""
        keys = self._token_keys(inputs, self.group_codes(), selection)
        return self._levels(keys, self.config.processor + 1)

    def stages(self) -> list[Block]:
        """What a step passes through, in order: the blocks."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def _token_keys(
        self, inputs: Mapping[str, Tensor], codes: Mapping[str, Tensor], selection: TokenSelection | None
    ) -> list[LazyKeys]:
        self.check_inputs(inputs)
        return self.token_keys(inputs, codes, selection, hide=self.config.mask_padding)

    def _levels(self, keys: Sequence[Keys | LazyKeys], num_blocks: int, labels: Keys | None = None) -> list[Tensor]:
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

    def _run_block(self, block: nn.Module, keys: Sequence[Keys | LazyKeys], skip: Tensor | None) -> Tensor:
        if self.recompute_blocks and self.training:
            return checkpoint(block, keys, skip, use_reentrant=False)
        return block(keys, skip)


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
