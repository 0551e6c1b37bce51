"""Perceiver IO (arXiv 2107.14795) as the HiP paper compares against it: all tokens into one set of latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hip_model.attention import CrossAttention, Keys
from hip_model.blocks import Block
from hip_model.config import PerceiverIOConfig
from hip_model.grouping import plan_single_group
from hip_model.modality import Modality
from hip_model.selection import TokenSelection
from hip_model.tokens import ModelOutput, TokenModel


class PerceiverIO(TokenModel):
    """One block over the tokens of all modalities, joined in order, and a head that answers position queries.

    Raises:
        ConfigError: modalities and config do not fit together.
    """

    def __init__(self, config: PerceiverIOConfig, modalities: Sequence[Modality]) -> None:
        super().__init__(config, modalities, plan_single_group(modalities))
        self.config = config
        train_latents, latents = config.latent_counts
        self.recompute_blocks = config.activation_checkpointing == "blocks"
        self.block = Block(
            num_groups=1,
            num_latents=latents,
            train_latents=train_latents,
            channels=config.num_channels,
            input_channels=config.embedding_channels,
            layers=config.num_self_attention_layers,
            cross_heads=config.num_cross_attention_heads,
            self_heads=config.num_self_attention_heads,
            cross_widening=config.cross_attention_widening,
            self_widening=config.self_attention_widening,
            dropout=config.dropout,
            drop_path=config.drop_path,
        )
        self.head = CrossAttention(config.embedding_channels, config.num_channels, 1, 1, residual=False)

    def forward(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> ModelOutput:
        """As ``HiP.forward``; for a selection each modality counts as one group of all its tokens.

        Raises:
            InputError: inputs that do not fit the modalities.
        """
        codes = self.group_codes()
        latents = self._latents(inputs, codes, selection)
        reconstruction = self.answer_queries(self.head, latents, codes, selection)
        return ModelOutput(reconstruction, [latents])

    def encode(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> list[Tensor]:
        """The block's output ``[B, 1, N, D]``, in a list as HiP's are."""
        return [self._latents(inputs, self.group_codes(), selection)]

    def stages(self) -> list[Block]:
        """As ``HiP.stages``: the one block."""
        return [self.block]

    def _latents(
        self, inputs: Mapping[str, Tensor], codes: Mapping[str, Tensor], selection: TokenSelection | None
    ) -> Tensor:
        self.check_inputs(inputs)
        # There is no padding to hide: empty slots are all there is.
        keys = _join([part.build() for part in self.token_keys(inputs, codes, selection, hide=True)])
        # The one block is all of the encoder: computed again whole it would be kept whole.
        latents: Tensor = self.block([keys], recompute_layers=self.recompute_blocks and self.training)
        return latents


def _join(parts: Sequence[Keys]) -> Keys:
    """The keys of all modalities as one group's."""
    values = torch.cat([part.values for part in parts], dim=2)
    biases = [part.bias for part in parts if part.bias is not None]
    if not biases:
        return Keys(values)
    batch = max(bias.shape[0] for bias in biases)
    return Keys(values, torch.cat([bias.expand(batch, -1, -1, -1) for bias in biases], dim=-1))
