"""The model as a plain function of tensors, for users who want no part of this project at load time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.evaluate.head import pool_features
from pipeline.registry.inference import Predictor


class EmbeddingGraph(nn.Module):
    """Raw tokens in, embedding (and label probabilities) out.

    ``forward(*tokens)`` takes one float32 ``[B, tokens, channels]`` per modality in the model's order, in the units
    that shards store (0..255 pixels, 16-bit samples); it returns ``{"embedding": [B, D]}`` and, with a head,
    ``"probabilities": [B, classes]``.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = predictor.loaded.model
        self.names = predictor.loaded.modality_names
        for name in self.names:
            normalisation = predictor.loaded.normalisations[name]
            self.register_buffer(f"{name}_mean", torch.tensor(normalisation.mean))
            self.register_buffer(f"{name}_std", torch.tensor(normalisation.std))
        head = predictor.head
        self.head = head
        self.softmax = head is None or head.task == "classification"
        self.scores: nn.Linear | None = None
        if head is not None:
            self.scores = nn.Linear(head.weight.shape[1], head.weight.shape[0])
            with torch.no_grad():  # (x - mean) / std folded into the layer
                self.scores.weight.copy_(head.weight / head.std)
                self.scores.bias.copy_(head.bias - (head.weight / head.std) @ head.mean)

    def forward(self, *tokens: Tensor) -> dict[str, Tensor]:
        """See the class."""
        inputs = {
            name: (value - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_std")
            for name, value in zip(self.names, tokens, strict=True)
        }
        latents = self.model.encode(inputs)
        found = {"embedding": pool_features(latents, (-1,))}
        if self.scores is not None and self.head is not None:
            scores = self.scores(pool_features(latents, self.head.levels, self.head.pool))
            found["probabilities"] = scores.softmax(-1) if self.softmax else scores.sigmoid()
        return found
