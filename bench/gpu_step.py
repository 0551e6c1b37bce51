"""Training steps on one GPU: examples per second of forward + backward + AdamW in bfloat16, by model, size and mode.

    python -m bench.gpu_step --cases hip_16:224:64 hip_256:2048:4 --modes full masked --execution eager graph

A case is ``model:size:batch``. ``full``: all tokens in and out; ``masked``: 15 % in, 85 % answered, the draw included.
Inputs are raw bytes in device memory, another batch every step, normalised there. Weights are bfloat16 with float32
master weights and moments, as DeepSpeed keeps them. ``graph``: the whole step as one CUDA graph, replayed; ``plain``: a
graph of the step without this package's device kernels. ``eager``: launched one by one; ``eager_plain``: none of the
device kernels; ``eager_layers``: those of single layers too. ``recorded``: forward and backward replayed as
``engine.cuda_graphs`` does, the optimizer one by one (masked only); its gradients must be those of ``eager_layers``.
The executions of a case take turns.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import label, modalities_of
from bench.device import GraphedStep, MasterAdamW, device_rates, profile_table, time_device
from bench.harness import HIGHER, NEITHER, Report, Row, arguments_parser
from hip_model import MaskedAutoencoder, Normalisation, build_model
from hip_model.accounting import model_cost
from hip_model.kernels.device import plain_kernels, recorded_launches
from hip_model.masking import MaskConfig
from hip_model.recorded_steps import record_steps

INPUT_SETS = 4
EXECUTIONS = ("eager", "graph", "plain", "eager_plain", "eager_layers", "recorded")
_NORMALISATION = {1: Normalisation((0.0,), (8000.0,), raw_dtype="int16"), 3: Normalisation((127.0,) * 3, (64.0,) * 3)}


class GpuCase:
    """A model in bfloat16 on the GPU, its optimizer, and batches of random bytes to go round."""

    def __init__(self, name: str, size: str, batch: int) -> None:
        torch.manual_seed(0)
        self.modalities = modalities_of(size)
        self.batch = batch
        with torch.device("cuda"):
            self.model: Any = build_model(name, self.modalities).train()
        with torch.no_grad():
            for parameter in self.model.unembed.parameters():
                parameter.normal_(std=0.1)
        self.model.bfloat16().cuda()  # Fourier features are made on CPU wherever the model is
        norms = {m.name: _NORMALISATION[m.num_channels] for m in self.modalities}
        self.autoencoder = MaskedAutoencoder(self.model, normalisation=norms)
        self.recorded = MaskedAutoencoder(self.model, normalisation=norms)
        record_steps(self.recorded)
        self.optimizer = MasterAdamW(list(self.model.parameters()))
        self.sets = [self._random_inputs(turn) for turn in range(INPUT_SETS)]
        self.inputs = {name: value.clone() for name, value in self.sets[0].items()}
        self.seeds = torch.arange(batch, device="cuda")
        self.turn = 0

    def renew(self) -> None:
        """The next batch into the buffers that steps (and graphs) read."""
        self.turn = (self.turn + 1) % INPUT_SETS
        for name, value in self.sets[self.turn].items():
            self.inputs[name].copy_(value)

    def step(self, mode: str) -> Callable[[], Tensor]:
        """One optimizer step of a mode; returns its loss."""
        losses: dict[str, Callable[[], Tensor]] = {
            "full": self._full,
            "masked": partial(self._masked, self.autoencoder),
            "recorded": partial(self._masked, self.recorded),
        }
        loss_of = losses[mode]

        def run() -> Tensor:
            loss = loss_of()
            loss.backward()
            self.optimizer.step()
            return loss.detach()

        return run

    def _full(self) -> Tensor:
        values = {name: self.autoencoder.normalisation[name].normalise(raw) for name, raw in self.inputs.items()}
        answers = self.model(values).reconstruction
        return torch.stack([(answers[n].float() - v).square().mean() for n, v in values.items()]).mean()

    def _masked(self, autoencoder: MaskedAutoencoder) -> Tensor:
        self.seeds.add_(self.batch)
        loss: Tensor = autoencoder(self.inputs, self.seeds).loss
        return loss

    def recorded_difference(self) -> float:
        """Largest difference of a replayed step's gradients to those of the same step launched one by one, relative."""
        largest = 0.0
        for _ in range(2):  # the recorded batch, and another
            self.renew()
            self.seeds.add_(self.batch)
            self.recorded(self.inputs, self.seeds).loss.backward()
            found = [p.grad for p in self.model.parameters()]
            self.model.zero_grad(set_to_none=True)
            with recorded_launches():
                self.autoencoder(self.inputs, self.seeds).loss.backward()
            for gradient, parameter in zip(found, self.model.parameters(), strict=True):
                if gradient is not None and parameter.grad is not None:
                    scale = parameter.grad.float().norm().clamp_min(1e-12)
                    largest = max(largest, float((gradient.float() - parameter.grad.float()).norm() / scale))
            self.model.zero_grad(set_to_none=True)
        return largest

    def _random_inputs(self, turn: int) -> dict[str, Tensor]:
        generator = torch.Generator("cuda").manual_seed(turn)
        made = {}
        for m in self.modalities:
            shape, is_sound = (self.batch, m.num_tokens, m.num_channels), m.num_channels == 1
            low, high, dtype = (-20_000, 20_000, torch.int16) if is_sound else (0, 256, torch.uint8)
            made[m.name] = torch.randint(low, high, shape, generator=generator, device="cuda", dtype=dtype)
        return made


def within(
    context: Callable[[], contextlib.AbstractContextManager[None]], step: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """The step inside of that context."""

    def run() -> Tensor:
        with context():
            return step()

    return run


def measure(report: Report, name: str, size: str, batch: int, mode: str, executions: list[str], repeats: int) -> None:
    """Time one case in one mode by all executions in turns, and add its rows."""
    case = GpuCase(name, size, batch)
    where = f"{name} {label(size)} {mode}, batch {batch}"
    steps: dict[str, Callable[[], Any]] = {}
    if "eager" in executions:
        steps["eager"] = case.step(mode)
    if "eager_plain" in executions:
        steps["eager_plain"] = within(plain_kernels, case.step(mode))
    if "eager_layers" in executions:
        steps["eager_layers"] = within(recorded_launches, case.step(mode))
    if "recorded" in executions and mode == "masked":
        report.add(Row(where, "recorded gradients' largest difference", "", (case.recorded_difference(),), NEITHER))
        steps["recorded"] = case.step("recorded")
    if "graph" in executions:
        steps["graph"] = GraphedStep(case.step(mode))
    if "plain" in executions:
        with plain_kernels():
            steps["plain"] = GraphedStep(case.step(mode))
    torch.cuda.reset_peak_memory_stats()
    times = time_device(steps, case.renew, repeats)
    cost = model_cost(case.model.config, case.modalities, mask=MaskConfig() if mode == "masked" else None)
    rate = device_rates()["matrix"]
    for execution, seconds in times.items():
        speeds = tuple(batch / value for value in seconds)
        report.add(Row(where, f"examples/s, {execution}", "1/s", speeds, HIGHER))
        used = tuple(speed * cost.training_flops / rate for speed in speeds)
        report.add(Row(where, f"FLOPs of the naive form over a matrix product's, {execution}", "", used, NEITHER))
    if {"eager", "graph"} <= set(times):
        shares = tuple(1 - g / e for e, g in zip(times["eager"], times["graph"], strict=True))
        report.add(Row(where, "host-bound share of the eager step", "", shares))
    report.add(Row(where, "peak memory", "GiB", (torch.cuda.max_memory_allocated() / 2**30,)))
    loss = statistics.fmean(float(step()) for step in steps.values())
    report.add(Row(where, "loss at the end", "", (loss,), NEITHER))


def main() -> None:
    """Measure the cases that the arguments choose, on the GPU."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--cases", nargs="+", default=["hip_16:224:64", "hip_256:224:64"])
    parser.add_argument("--modes", nargs="+", default=["full", "masked"], choices=["full", "masked"])
    parser.add_argument("--execution", nargs="+", default=["graph"], choices=EXECUTIONS)
    parser.add_argument("--profile", action="store_true", help="print each case's kernels by time instead")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench.gpu_step needs a CUDA GPU; bench.model_step measures the same models on CPU")
    report = Report("gpu_step", packages=("triton",))
    report.add(*(Row("device", f"{what} rate", "1/s", (rate,), NEITHER) for what, rate in device_rates().items()))
    for text in ["hip_nano:64:2"] if arguments.quick else arguments.cases:
        name, size, batch = text.split(":")
        for mode in arguments.modes:
            try:
                if arguments.profile:
                    case = GpuCase(name, size, int(batch))
                    print(f"\n{text} {mode}\n{profile_table(case.step(mode))}", flush=True)
                else:
                    measure(report, name, size, int(batch), mode, arguments.execution, arguments.repeats)
            except torch.cuda.OutOfMemoryError as error:
                report.note(f"{text} {mode}: out of memory ({str(error).splitlines()[0][:120]})")
            with contextlib.suppress(NameError):
                del case
            torch.cuda.empty_cache()
    if not arguments.profile:
        report.finish(arguments.output)


if __name__ == "__main__":
    main()
