"""What a training loop needs from the thing that computes gradients and applies them, and its plain-torch form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from pipeline.train.optim import FiniteStep, build_optimizer, empty_moments, parameter_groups, set_learning_rate
from pipeline.train.options import EngineOptions, OptimOptions

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class StepResult:
    """Whether the weights moved, and the gradient norm over all workers before clipping (infinite when unknown).

    The norm may be a tensor that the device has yet to compute: reading it would hold up the next step.
    """

    applied: bool
    gradient_norm: float | Tensor


@dataclass(frozen=True)
class ParameterState:
    """One parameter in float32 with its Adam moments (none where the engine was asked for weights only)."""

    weight: Tensor
    moments: dict[str, Tensor]


class Engine(Protocol):
    """Gradients in, updated weights out; every method is called by all workers together."""

    module: nn.Module
    device: torch.device

    def forward(self, **inputs: Any) -> Any:
        """Run the module on this worker's part of the batch."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of ``loss``; ``step`` applies their sum over workers and calls. ``last``: of this step."""

    def step(self, learning_rate: float) -> StepResult:
        """Apply the summed gradient and forget it; a non-finite one is forgotten only."""

    def named_state(self, moments: bool = True) -> Iterator[tuple[str, ParameterState]]:
        """Every trained parameter by name, whole and in float32, whatever the sharding."""

    def load_named_state(self, states: Mapping[str, ParameterState], optimizer_steps: int) -> None:
        """Put back what ``named_state`` gave, from any engine, stage and number of workers."""

    def optimizer_steps(self) -> int:
        """Updates applied so far, Adam's own count."""

    def whole_module(self) -> nn.Module:
        """A module with whole weights for evaluation; any worker may then run it without the others."""

    def extra_state(self) -> dict[str, float]:
        """Numbers of the engine's own that a resume needs (the fp16 loss scale)."""

    def load_extra_state(self, extra: Mapping[str, float]) -> None:
        """Put back ``extra_state``."""


class TorchEngine:
    """Plain PyTorch: the whole model on every worker, gradients summed over workers in one message."""

    def __init__(self, module: nn.Module, options: EngineOptions, optim: OptimOptions, device: torch.device) -> None:
        self.module = module.to(device)
        self.device = device
        self._precision = options.precision
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        inner = build_optimizer(parameter_groups(self._trained.items(), optim), optim)
        self._optimizer = FiniteStep(inner, options.gradient_clip)
        self._workers = distributed.get_world_size() if distributed.is_initialized() else 1

    def forward(self, **inputs: Any) -> Any:
        """Run the module, under autocast for bf16."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            return self.module(**inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of ``loss``."""
        loss.backward()

    def step(self, learning_rate: float) -> StepResult:
        """Sum over workers, clip, apply."""
        self._sum_over_workers()
        set_learning_rate(self._optimizer.param_groups, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return StepResult(not self._optimizer.overflow, self._optimizer._global_grad_norm)

    def _sum_over_workers(self) -> None:
        if self._workers == 1:
            return
        for parameter in self._trained.values():  # a modality that this worker's part lacks leaves no gradient
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._trained.values() if p.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(message)
        for gradient, part in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def named_state(self, moments: bool = True) -> Iterator[tuple[str, ParameterState]]:
        """Weights and moments as they are."""
        yield from plain_named_state(self._trained, self._optimizer, moments)

    def load_named_state(self, states: Mapping[str, ParameterState], optimizer_steps: int) -> None:
        """Overwrite weights and moments in place."""
        load_plain_state(self._trained, self._optimizer, states, optimizer_steps)

    def optimizer_steps(self) -> int:
        """Adam's count."""
        return count_steps(self._optimizer)

    def whole_module(self) -> nn.Module:
        """Weights are always whole here."""
        return self.module

    def extra_state(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def load_extra_state(self, extra: Mapping[str, float]) -> None:
        """Nothing."""


def plain_named_state(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, moments: bool
) -> Iterator[tuple[str, ParameterState]]:
    """The state of an unsharded float32 module, by name; zero moments where no step was made yet."""
    for name, parameter in trained.items():
        state = optimizer.state.get(parameter) or empty_moments(parameter.detach())
        yield name, ParameterState(parameter.detach(), {key: state[key] for key in MOMENTS} if moments else {})


@torch.no_grad()
def load_plain_state(
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    states: Mapping[str, ParameterState],
    optimizer_steps: int,
) -> None:
    """Overwrite an unsharded module and its optimizer."""
    for name, parameter in trained.items():
        parameter.copy_(states[name].weight)
        parameter.grad = None
        state = optimizer.state[parameter]
        if not state:
            state |= empty_moments(parameter.detach())
        state["step"].fill_(optimizer_steps)
        for key in MOMENTS:
            state[key].copy_(states[name].moments[key])


def count_steps(optimizer: torch.optim.Optimizer) -> int:
    """The largest step count in an optimizer's state; 0 before the first step."""
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)
