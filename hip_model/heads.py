"""What answers a task from a model's latents: probes, classifiers and dense prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hip_model.attention import CrossAttention, Keys
from hip_model.errors import ConfigError, InputError
from hip_model.init import Linear, Table
from hip_model.norm import LayerNorm
from hip_model.selection import TokenSelection


def pool_latents(latents: Tensor) -> Tensor:
    """Mean over groups and latents, ``[B, G, N, D] -> [B, D]``.

    Raises:
        InputError: not four axes.
    """
    _check_latents(latents)
    return latents.mean(dim=(1, 2))


class LinearProbe(nn.Module):
    """Batch-normalised mean latents of one block to class logits; the encoder is meant to stay frozen.

    As in MAE (arXiv 2111.06377, appendix A.1). The batch normalisation has no learned scale: it only takes out the very
    different scales of the channels, so that one learning rate suits every block.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        _check_counts(channels=channels, num_classes=num_classes)
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.classify = Linear(channels, num_classes)

    def forward(self, latents: Tensor) -> Tensor:
        """``[B, G, N, D] -> [B, classes]``; gradients stop at the latents."""
        return self.classify(self.norm(pool_latents(latents.detach())))


class AttentiveProbe(nn.Module):
    """One learned query that looks at all latents of one block, then a linear classifier; the encoder stays frozen.

    Raises:
        ConfigError: heads that do not divide the channels.
    """

    def __init__(self, channels: int, num_classes: int, heads: int = 1) -> None:
        super().__init__()
        _check_counts(channels=channels, num_classes=num_classes, heads=heads)
        if channels % heads:
            raise ConfigError(f"heads={heads} does not divide the block's {channels} channels")
        self.query = Table(1, channels)
        self.attention = CrossAttention(channels, channels, heads, widening=1)
        self.norm = LayerNorm(channels)
        self.classify = Linear(channels, num_classes)

    def forward(self, latents: Tensor) -> Tensor:
        """``[B, G, N, D] -> [B, classes]``; gradients stop at the latents."""
        _check_latents(latents)
        keys = latents.detach().flatten(1, 2).unsqueeze(1)
        attended = self.attention(self.query().view(1, 1, 1, -1), [Keys(keys)])
        return self.classify(self.norm(attended[:, 0, 0]))


class ClassificationHead(nn.Module):
    """Normalised mean latents of one block to logits of exclusive classes, for fine-tuning; loss: cross-entropy."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        _check_counts(channels=channels, num_classes=num_classes)
        self.norm = LayerNorm(channels)
        self.classify = Linear(channels, num_classes)

    def forward(self, latents: Tensor) -> Tensor:
        """``[B, G, N, D] -> [B, classes]``."""
        return self.classify(self.norm(pool_latents(latents)))

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of ``[B, classes]`` against class indices ``[B]``."""
        return nn.functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class, summing to 1, ``[B, classes]``."""
        return logits.float().softmax(dim=-1)


class MultiLabelHead(ClassificationHead):
    """As ClassificationHead for labels that do not exclude each other; loss: binary cross-entropy per label."""

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean binary cross-entropy of ``[B, classes]`` against 0/1 targets of the same shape."""
        targets = labels.float() * (1 - label_smoothing) + label_smoothing / 2
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), targets)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each label on its own, ``[B, classes]``."""
        return logits.float().sigmoid()


class DenseHead(nn.Module):
    """An output per token of one modality (segmentation, depth, flow), answered by the model's own decoder queries.

    The model's positions query its reconstruction head as in pretraining; only the last map differs: instead of raw
    values it gives ``num_outputs`` channels. The model is part of this module, to be fine-tuned with it or frozen by
    its owner.

    Raises:
        ConfigError: a modality the model does not have.
    """

    def __init__(self, model: Any, modality: str, num_outputs: int) -> None:
        super().__init__()
        _check_counts(num_outputs=num_outputs)
        names = [known.name for known in model.modalities]
        if modality not in names:
            raise ConfigError(f"dense head for modality {modality!r}, but the model has {', '.join(names)}")
        self.model: Any = model
        self.modality = modality
        width = model.unembed[modality].in_features
        # In the place of the un-embedding, so that the model's forward answers the task.
        model.unembed[modality] = Linear(width, num_outputs)

    def forward(self, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> Tensor:
        """``inputs`` as for the model, normalised; returns ``[B, T, num_outputs]`` in the modality's token order.

        With a ``selection``, its queries' answers ``[B, g*q, num_outputs]``.
        """
        output: Tensor = self.model(inputs, selection).reconstruction[self.modality]
        return output

    def loss(self, logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
        """Mean cross-entropy of ``[B, T, classes]`` against class indices ``[B, T]``, ``ignore_index`` left out."""
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten().long(), ignore_index=ignore_index
        )


def encoder_channels(model: Any) -> list[int]:
    """Channels of every output of ``model(...).latents``, to size a head for any level.

    Works for all models of this package; the processor of a HiP with ``n`` blocks is level ``n // 2``.
    """
    channels = model.config.num_channels
    if isinstance(channels, int):
        return [channels] * getattr(model.config, "num_iterations", 1)
    return list(channels)


def _check_latents(latents: Tensor) -> None:
    if latents.ndim != 4:
        raise InputError(f"latents need the axes [batch, groups, latents, channels], got shape {tuple(latents.shape)}")


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
