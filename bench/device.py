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

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.master = [nn.Parameter(p.detach().float()) for p in self.parameters]
        for master in self.master:
            master.grad = torch.zeros_like(master)
        self.adamw = torch.optim.AdamW(self.master, lr=1e-4, fused=True, capturable=True)

    def step(self) -> None:
        """Apply the gradients of the bfloat16 weights, and drop them."""
        with torch.no_grad():
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
            torch._foreach_copy_([m.grad for m in self.master], gradients)
            self.adamw.step()
            torch._foreach_copy_(self.parameters, self.master)
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
