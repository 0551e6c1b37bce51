"""What the GPU benchmarks share: steps as CUDA graphs, an optimizer with master weights, timing by device events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hip_model.kernels.device import recorded_launches

# A timed stretch is long enough that the events' own cost and the clock's steps do not show.
_STRETCH_SECONDS = 0.25


class MasterAdamW:
    """AdamW on float32 copies of bfloat16 weights, as mixed-precision training keeps them; fits into a CUDA graph."""

    rate, betas, epsilon, decay = 1e-4, (0.9, 0.999), 1e-8, 0.01

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        from bench.triton_adamw import BLOCK

        self.parameters = list(parameters)
        device = self.parameters[0].device
        sizes = torch.tensor([p.numel() for p in self.parameters])
        room = (sizes + 15) // 16 * 16  # so that each begins at a whole number of 64 bytes
        firsts = room.cumsum(0) - room
        blocks = (sizes + BLOCK - 1) // BLOCK
        parts = torch.arange(len(sizes)).repeat_interleave(blocks)
        offsets = (torch.arange(len(parts)) - (blocks.cumsum(0) - blocks)[parts]) * BLOCK
        weights = torch.tensor([p.data_ptr() for p in self.parameters])
        self._layout = [value.to(device) for value in (parts, offsets, weights)]
        self._sizes, self._firsts = sizes.to(device), firsts.to(device)
        self.master, self.mean, self.square = torch.zeros(3, int(room.sum()), device=device)
        for parameter, first in zip(self.parameters, firsts.tolist(), strict=True):
            self.master[first : first + parameter.numel()] = parameter.detach().flatten()
        self.count = torch.zeros((), device=device)
        self._addresses: list[Tensor] = []  # what a recorded step copies from has to stay

    def step(self) -> None:
        """Apply the gradients of the bfloat16 weights, and drop them."""
        from bench.triton_adamw import BLOCK, adamw_kernel

        with torch.no_grad():
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad.contiguous() for p in self.parameters]
            gradients = [found if found.data_ptr() % 16 == 0 else found.clone() for found in gradients]
            is_recorded = self.count.is_cuda and torch.cuda.is_current_stream_capturing()
            addresses = torch.tensor([found.data_ptr() for found in gradients], pin_memory=self.count.is_cuda)
            self._addresses = [*self._addresses, addresses] if is_recorded else [addresses]
            self.count += 1
            parts, offsets, weights = self._layout
            adamw_kernel[(len(parts),)](
                parts, offsets, weights, addresses.to(self.count.device, non_blocking=True), self._sizes, self._firsts,
                self.master, self.mean, self.square, self.count, self.rate, beta_mean=self.betas[0],
                beta_square=self.betas[1], epsilon=self.epsilon, decay=self.decay, block=BLOCK, num_warps=4,
            )  # fmt: skip
            for parameter in self.parameters:
                parameter.grad = None


class GraphedStep:
    """A step recorded once as a CUDA graph; a call replays it and returns the recorded loss."""

    def __init__(self, step: Callable[[], Tensor]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), recorded_launches():
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), recorded_launches():
            self.loss = step()

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.loss


def time_device(
    steps: Mapping[str, Callable[[], Any]], prepare: Callable[[], Any], repeats: int
) -> dict[str, tuple[float, ...]]:
    """Seconds a step, by device events over stretches of steps, the kinds of step taking turns; warm-up excluded."""
    counts = {}
    for name, step in steps.items():
        for _ in range(2):
            step()
        counts[name] = max(2, round(_STRETCH_SECONDS / _stretch(step, prepare, 2)))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            found[name].append(_stretch(step, prepare, counts[name]))
    return {name: tuple(values) for name, values in found.items()}


def _stretch(step: Callable[[], Any], prepare: Callable[[], Any], count: int) -> float:
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    began.record()
    for _ in range(count):
        prepare()
        step()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / 1000 / count


@lru_cache(maxsize=1)
def device_rates() -> dict[str, float]:
    """This device's ceilings now: FLOP/s of a bfloat16 matrix product, bytes/s of a copy (read + written)."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    product = time_device({"product": lambda: left @ right}, lambda: None, 3)["product"]
    copy = time_device({"copy": lambda: target.copy_(source)}, lambda: None, 3)["copy"]
    return {"matrix": 2 * 8192**3 / min(product), "copy": 2 * 4 * 2**29 / min(copy)}


def profile_table(step: Callable[[], Any], rows: int = 22) -> str:
    """The kernels of one step by device time, after warm-up."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        step()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels.setdefault(event.name, []).append(event.device_time)
    total = sum(map(sum, kernels.values()))
    lines = [f"{total / 1000:.2f} ms on the device in {sum(map(len, kernels.values()))} kernels"]
    for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:rows]:
        lines.append(f"{sum(times) / 1000:8.3f} ms {len(times):5d}× {name[:110]}")
    return "\n".join(lines)
