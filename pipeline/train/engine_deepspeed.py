"""The DeepSpeed engine behind the training loop's interface: ZeRO 0 to 3, offload, bf16 and fp16."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import deepspeed
import torch
import torch.distributed as distributed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from pipeline.train.engine import MOMENTS, ParameterState, StepResult, count_steps, load_plain_state, plain_named_state
from pipeline.train.optim import FiniteStep, build_optimizer, empty_moments, parameter_groups, set_learning_rate
from pipeline.train.options import EngineOptions, OptimOptions

_LARGEST_BUCKET = 500_000_000  # gradients that go in one message, DeepSpeed's default


class _LossFirst(nn.Module):
    """Puts the loss where DeepSpeed attaches its backward hooks: it looks into tuples, not into dataclasses."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> tuple[Tensor, Any]:
        output = self.inner(**inputs)
        return output.loss, output


class DeepSpeedEngine:
    """One DeepSpeed engine; the process group must exist."""

    def __init__(
        self,
        module: nn.Module,
        options: EngineOptions,
        optim: OptimOptions,
        device: torch.device,
        micro_batch_size: int,
        accumulation_steps: int,
    ) -> None:
        _skip_compiled_collectives()
        self._workers = distributed.get_world_size()
        options = replace(options, stage=options.stage_for(self._workers))
        self.module = module.to(device)
        self.device = device
        self._options = options
        self._stage = options.stage
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        trained_parameters = sum(parameter.numel() for parameter in self._trained.values())
        kept_buffers = {name: value.clone() for name, value in module.named_buffers()}
        self._optimizer = build_optimizer(parameter_groups(self._trained.items(), optim), optim)
        if self._stage == 0 and options.precision == "fp32":  # the one case in which DeepSpeed does not check gradients
            self._optimizer = FiniteStep(self._optimizer, options.gradient_clip)
        self._copy = copy.deepcopy(self.module) if self._stage == 3 else None
        self._engine = deepspeed.initialize(
            model=_LossFirst(module),
            optimizer=self._optimizer,
            config=deepspeed_config(options, micro_batch_size, accumulation_steps, self._workers, trained_parameters),
            dist_init_required=False,
        )[0]
        if self._stage == 0 and self._workers == 1:  # else every gradient is copied into a message to nobody, and back
            self._engine.enable_backward_allreduce = False
        if self._stage == 0:  # DeepSpeed walks through all modules for their names, at every step
            self._engine.zero_grad = self._forget_gradients
        for name, value in module.named_buffers():  # bf16 would round the data's mean and deviation
            value.data = kept_buffers[name].to(value.device)
        if self._stage > 0:
            self._create_moments()

    def _create_moments(self) -> None:
        """Make zero moments now: DeepSpeed links them to names after the first group's first update, too early."""
        zero = self._engine.optimizer
        flats = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        for flat in flats:
            if not self._optimizer.state[flat]:
                self._optimizer.state[flat] |= empty_moments(flat.detach())
        if self._stage < 3:
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def forward(self, **inputs: Any) -> Any:
        """Run the module through DeepSpeed's hooks."""
        return self._engine(**inputs)[1]

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of ``loss``; DeepSpeed averages over workers, so the loss is scaled to end as a sum."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss if self._workers == 1 else loss * self._workers, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> StepResult:
        """Clip, apply and ask whether it was applied: DeepSpeed skips a non-finite gradient without a word."""
        set_learning_rate(self._optimizer.param_groups, learning_rate)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        applied = bool(self._engine.was_step_applied())
        return StepResult(applied, norm if applied and norm is not None else math.inf)

    def _forget_gradients(self) -> None:
        for parameter in self._trained.values():
            parameter.grad = None

    def named_state(self, moments: bool = True) -> Iterator[tuple[str, ParameterState]]:
        """Gather one parameter after another."""
        if self._stage == 0:
            yield from plain_named_state(self._trained, self._optimizer, moments)
            return
        for name, parameter in self._trained.items():
            found = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS} if moments else {}
            yield name, ParameterState(safe_get_full_fp32_param(parameter), found)

    @torch.no_grad()
    def load_named_state(self, states: Mapping[str, ParameterState], optimizer_steps: int) -> None:
        """Overwrite the float32 masters, the moments and the working weights."""
        if self._stage == 0:
            load_plain_state(self._trained, self._optimizer, states, optimizer_steps)
            return
        for name, parameter in self._trained.items():
            weight = states[name].weight.to(self.device)
            self._overwrite(parameter, weight, None)
            for key in MOMENTS:
                self._overwrite(parameter, states[name].moments[key].to(self.device), key)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3):
                if self._stage < 3 or distributed.get_rank() == 0:
                    parameter.data.copy_(weight)
        for state in self._optimizer.state.values():
            state["step"].fill_(optimizer_steps)

    def _overwrite(self, parameter: nn.Parameter, values: Tensor, moment: str | None) -> None:
        """Set one float32 master weight, or one of its moments, from its whole."""
        if self._stage < 3 and moment is None:
            safe_set_full_fp32_param(parameter, values)
        elif self._stage < 3:
            safe_set_full_optimizer_state(parameter, values, moment)
        else:  # DeepSpeed's own functions fail for a size that the number of workers does not divide
            zero = self._engine.optimizer
            part, group = zero._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=False, optim_state_key=moment
            )
            size, rank = part.numel(), zero._get_param_partition_rank(parameter)
            whole = pad(values.flatten(), (0, size * self._workers - values.numel()))
            part.data.copy_(whole[size * rank : size * (rank + 1)])
            if zero._swappable_optimizer_subgroup(group):
                zero._optimizer_states_and_gradient_swap_out(group)

    @torch.no_grad()
    def whole_module(self) -> nn.Module:
        """The module itself below stage 3; there a copy, for running the sharded one takes all workers in step."""
        if self._copy is None:
            return self.module
        copies = dict(self._copy.named_parameters())
        for name, state in self.named_state(moments=False):
            copies[name].copy_(state.weight)
        return self._copy

    def optimizer_steps(self) -> int:
        """Adam's count."""
        return count_steps(self._optimizer)

    def extra_state(self) -> dict[str, float]:
        """The fp16 loss scale."""
        if self._options.precision != "fp16":
            return {}
        return {"loss_scale": float(self._engine.optimizer.loss_scaler.cur_scale)}

    def load_extra_state(self, extra: Mapping[str, float]) -> None:
        """Put the fp16 loss scale back."""
        if self._options.precision == "fp16" and "loss_scale" in extra:
            self._engine.optimizer.loss_scaler.cur_scale = extra["loss_scale"]


def _skip_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling a C++ collective on CPU, a minute of work for inference only."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def end_process_group() -> None:
    """End it through DeepSpeed where that came to life: it would go on with this run's groups in the next run."""
    (deepspeed.comm if deepspeed.comm.is_initialized() else distributed).destroy_process_group()


def deepspeed_config(
    options: EngineOptions, micro_batch_size: int, accumulation_steps: int, workers: int, trained_parameters: int
) -> dict[str, Any]:
    """The DeepSpeed configuration that our options stand for."""
    guarded_by_us = options.stage == 0 and options.precision == "fp32"
    zero: dict[str, Any] = {"stage": options.stage, "contiguous_gradients": True, "overlap_comm": False}
    # ZeRO keeps a float32 buffer of this many gradients on the device: 2 GB by default, five times our models.
    zero["reduce_bucket_size"] = min(_LARGEST_BUCKET, trained_parameters)
    if options.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        "train_batch_size": micro_batch_size * accumulation_steps * workers,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": 0.0 if guarded_by_us else options.gradient_clip or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if options.precision != "fp32":
        config[options.precision] = {"enabled": True}
    return config
