"""Parameter groups, optimizers that refuse non-finite gradients, and the moving average of the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from pipeline.train.options import OptimOptions

# Learned inputs and positions: many rows, each needed rarely, which decay would pull to zero.
_TABLE_NAME = re.compile(r"(^|\.)(positions|latents)\.")
_POSITION_NAME = re.compile(r"(^|\.)positions\.")
_BLOCK_NAME = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
# A Perceiver has one block, or none: there the layers of its self-attention count, after the look at the inputs.
_LAYER_NAME = re.compile(r"(?:^|\.)self_attention\.(\d+)\.")
_ENTRY_NAME = re.compile(r"(^|\.)(latents|(first_|shared_)?cross_attention)\.")
_INPUT_NAME = re.compile(r"(^|\.)(embed|positions|position_projections|modality_vectors)\.")


def is_position_table(name: str) -> bool:
    """Whether a parameter is a learned position table, by its name."""
    return bool(_POSITION_NAME.search(name))


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: the matrices of linear layers only."""
    return parameter.ndim >= 2 and not _TABLE_NAME.search(name)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], options: OptimOptions
) -> list[dict[str, Any]]:
    """Optimizer groups, each with ``weight_decay``, ``lr_scale`` and the ``names`` of its parameters.

    With ``layer_decay`` below 1 a parameter learns slower the more blocks lie between it and the output (Clark et al.
    2020), as the names tell.
    """
    named = list(named_parameters)
    depths = depths_below_output([name for name, _ in named])
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        scale = options.position_learning_rate_scale if is_position_table(name) else 1.0
        scale *= options.layer_decay ** depths[name]
        weight_decay = options.weight_decay if decays(name, parameter) else 0.0
        group = groups.setdefault(
            (weight_decay, scale), {"params": [], "names": [], "weight_decay": weight_decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def depths_below_output(names: Sequence[str]) -> dict[str, int]:
    """Blocks between each parameter and the output, for a Perceiver layers: 0 for heads, most for embeddings."""
    blocks = {name: int(found[1]) for name in names if (found := _BLOCK_NAME.search(name))}
    if not blocks:
        blocks = {name: int(found[1]) + 1 for name in names if (found := _LAYER_NAME.search(name))}
        blocks |= {name: 0 for name in names if blocks and _ENTRY_NAME.search(name)}
    count = max(blocks.values(), default=-1) + 1
    first = {name: count + 1 for name in names if _INPUT_NAME.search(name)}
    return {name: count - blocks[name] if name in blocks else first.get(name, 0) for name in names}


def set_learning_rate(groups: Iterable[dict[str, Any]], learning_rate: float) -> None:
    """Give each group its share of ``learning_rate``."""
    for group in groups:
        group["lr"] = learning_rate * group["lr_scale"]


def build_optimizer(groups: list[dict[str, Any]], options: OptimOptions) -> torch.optim.Optimizer:
    """The optimizer by name, with its moments called ``exp_avg`` and ``exp_avg_sq``."""
    if options.kind == "lamb":
        return Lamb(groups, betas=options.betas, eps=options.epsilon)
    return FusedAdamW(groups, lr=0.0, betas=options.betas, eps=options.epsilon, fused=True)


class FusedAdamW(torch.optim.AdamW):
    """Fused AdamW; PyTorch's own step asks a dozen questions about each tensor before it calls the same update."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in moved:
                if not self.state[parameter]:
                    self.state[parameter] |= empty_moments(parameter)
            states = [self.state[parameter] for parameter in moved]
            adamw(
                moved,
                [parameter.grad for parameter in moved],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, algorithm 2): Adam's direction, scaled to each tensor's own norm."""

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0, "lr_scale": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= empty_moments(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        steps = float(state["step"])
        state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        mean = state["exp_avg"] / (1 - beta1**steps)
        direction = mean / ((state["exp_avg_sq"] / (1 - beta2**steps)).sqrt() + group["eps"])
        if group["weight_decay"]:
            direction = direction + group["weight_decay"] * parameter
        weight_norm, direction_norm = parameter.norm(), direction.norm()
        both = (weight_norm > 0) & (direction_norm > 0)
        trust = torch.where(both, weight_norm / direction_norm, torch.ones_like(weight_norm))
        parameter.sub_(direction * (trust * group["lr"]))


def empty_moments(parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state before the first step: a float32 counter and two zero moments."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


class FiniteStep(torch.optim.Optimizer):
    """Wraps an optimizer that sees whole gradients: clips them, and leaves the weights alone when they are not finite.

    ``overflow`` and ``_global_grad_norm`` are the names that DeepSpeed reads from an optimizer after a step.
    """

    def __init__(self, inner: torch.optim.Optimizer, largest_norm: float | None) -> None:
        self.inner = inner
        self.largest_norm = largest_norm
        self.overflow = False
        self._global_grad_norm = 0.0
        self.defaults = inner.defaults
        self.state = inner.state
        self.param_groups = inner.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply the update, or set ``overflow`` and apply nothing."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._global_grad_norm = float(norm)
        self.overflow = not bool(torch.isfinite(norm))
        if self.overflow:
            return
        if self.largest_norm is not None and self._global_grad_norm > self.largest_norm:
            torch._foreach_mul_(gradients, self.largest_norm / (self._global_grad_norm + 1e-6))
        self.inner.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        self.inner.zero_grad(set_to_none)


class WeightAverage:
    """Exponential moving average of the weights, in float32, by parameter name."""

    def __init__(self, named_parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().float().clone() for name, value in named_parameters.items()}

    @torch.no_grad()
    def update(self, named_parameters: Mapping[str, Tensor]) -> None:
        """Move the average towards the present weights."""
        now = [named_parameters[name].detach().float() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), now, 1 - self.decay)
