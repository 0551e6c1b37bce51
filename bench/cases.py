"""The models, inputs and steps that the model benchmarks time: forward, or forward + backward at batch ``B``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hip_model import MaskedAutoencoder, Modality, TokenSelection, build_model

SIZES = ("64", "224", "512", "1024", "2048", "av")
"""Image sides, and the audio + video example of 524,288 tokens."""

Inputs = dict[str, Tensor]


def modalities_of(size: str) -> list[Modality]:
    """The modalities of one of ``SIZES`` (any image side will do)."""
    if size == "av":
        return [Modality("video", 8 * 224 * 224, 3, (8, 224, 224)), Modality("audio", 122_880, 1, (122_880,))]
    return [Modality("image", int(size) ** 2, 3, (int(size), int(size)))]


def tokens_of(size: str) -> int:
    """Input tokens of an example of that size."""
    return sum(modality.num_tokens for modality in modalities_of(size))


def label(size: str) -> str:
    """How a size reads in a table."""
    return "audio+video" if size == "av" else f"{size}²"


@dataclass
class Case:
    """One model and size with fresh random inputs for every step, the same for all modes of one turn."""

    model: Any
    modalities: Sequence[Modality]
    batch: int = 1
    turn: int = 0

    def __post_init__(self) -> None:
        self.autoencoder = MaskedAutoencoder(self.model)
        self.inputs: Inputs = {}
        self.renew()

    def renew(self) -> None:
        """New inputs, no gradients; not part of any timing."""
        self.turn += 1
        self.model.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(self.turn)
        self.inputs = {
            m.name: torch.randn(self.batch, m.num_tokens, m.num_channels, generator=generator) for m in self.modalities
        }

    def forward(self) -> None:
        """All tokens in and out, no gradients."""
        with torch.no_grad():
            self.model(self.inputs)

    def full(self) -> None:
        """All tokens in, all answered, mean squared error, backward."""
        self.error(self.inputs).backward()

    def masked(self) -> None:
        """Masked autoencoding at the paper's ratio: 15 % of the tokens in, 85 % answered, the draw included."""
        self.autoencoder(self.inputs, torch.arange(self.batch) + self.turn).loss.backward()

    def checkpointed(self) -> None:
        """As ``masked``, with the inside of every block computed again in the backward pass."""
        self.model.recompute_blocks = True
        try:
            self.masked()
        finally:
            self.model.recompute_blocks = False

    def naive(self) -> None:
        """As ``full`` through the naive twin."""
        from hip_model.kernels.naive import naive_forward

        _mean_square(naive_forward(self.model, self.inputs).reconstruction, self.inputs).backward()

    def modes(self, names: Sequence[str]) -> dict[str, Callable[[], None]]:
        """The steps of those names."""
        return {name: getattr(self, name) for name in names}

    def difference_to_twin(self, selection: TokenSelection | None = None) -> float:
        """Largest difference of any reconstruction to the naive twin's, over the largest value."""
        from hip_model.kernels.naive import naive_forward

        with torch.no_grad():
            found = self.model(self.inputs, selection).reconstruction
            wanted = naive_forward(self.model, self.inputs, selection).reconstruction
        scale = max(float(value.abs().max()) for value in wanted.values())
        return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / scale

    def error(self, inputs: Inputs) -> Tensor:
        """Mean squared error of all tokens, all of them in."""
        return _mean_square(self.model(inputs).reconstruction, inputs)


def _mean_square(output: Inputs, values: Inputs) -> Tensor:
    return torch.stack([(output[name] - values[name]).square().mean() for name in values]).mean()


def build_case(name: str, size: str, batch: int = 1, **overrides: Any) -> Case:
    """A model in training mode whose un-embeddings are not zero, so that every gradient has work to do."""
    torch.manual_seed(0)
    modalities = modalities_of(size)
    model: Any = build_model(name, modalities, **overrides).train()
    with torch.no_grad():
        for parameter in model.unembed.parameters():
            parameter.normal_(std=0.1)
    return Case(model, modalities, batch)


def matrix_rate(side: int = 1024, repeats: int = 5) -> float:
    """FLOP per CPU-second of a plain float32 matrix product now: the ceiling that utilisation is measured against."""
    from bench.harness import time_in_turns

    left, right = torch.randn(side, side), torch.randn(side, side)
    timing = time_in_turns({"product": lambda: left @ right}, repeats)["product"]
    return 2 * side**3 / min(timing.cpu_seconds)
