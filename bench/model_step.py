"""Forward and training step of the models over input sizes: time, memory, use of the processor, share of each block.

    python -m bench.model_step --models hip_16 hip_256 --sizes 224 512

Every model and size runs in a process of its own, at batch 1 and one thread unless told otherwise; its modes take turns
with fresh random inputs. ``full``: all tokens in and out; ``masked``: 15 % in, 85 % out; both are forward + backward.
``--modes masked checkpointed``: what activation checkpointing costs and saves.
The naive twin runs beside them where it is affordable, and their outputs must agree. Over the sizes of a model, time
and memory are fitted with ``a + b * tokens``. One result file per model.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from bench.cases import SIZES, Case, build_case, label, matrix_rate, tokens_of
from bench.harness import HIGHER, NEITHER, Report, Row, arguments_parser, in_fresh_process, peak_memory, time_in_turns

MODELS = ("hip_mini", "hip_16", "hip_256")
# Tokens above which a step takes so long that a comparison is left out, or repeats are cut.
_NAIVE_LIMIT, _FEW_REPEATS_LIMIT = 60_000, 300_000
_TOLERANCE = 1e-4


def measure(name: str, size: str, repeats: int, threads: int, batch: int, modes: Sequence[str]) -> dict[str, Any]:
    """One model and size, in this process: repeats in seconds, memory in MiB, shares, difference to the twin."""
    torch.set_num_threads(threads)
    case = build_case(name, size, batch)
    is_hip = name.startswith("hip")
    if "checkpointed" in modes:  # what torch loads for its first recomputation is no memory of the model
        checkpoint(torch.sin, torch.ones(1, requires_grad=True), use_reentrant=False).backward()
    memory = {}
    for mode in modes:
        if mode not in ("forward", "naive"):
            case.renew()
            with peak_memory() as peak:
                case.modes([mode])[mode]()
            memory[mode] = peak[0]
    with_twin = is_hip and tokens_of(size) <= _NAIVE_LIMIT and "full" in modes
    chosen = [*modes, *(["naive"] if with_twin else [])]
    few = 2 if tokens_of(size) > _FEW_REPEATS_LIMIT else repeats
    timings = time_in_turns(
        case.modes(chosen), min(few, repeats), warm_up=0 if few < repeats else 1, prepare=case.renew
    )
    return {
        "cpu": {mode: timing.cpu_seconds for mode, timing in timings.items()},
        "wall": {mode: timing.wall_seconds for mode, timing in timings.items()},
        "memory": memory,
        "difference": case.difference_to_twin() if with_twin else None,
        "shares": forward_shares(case) if is_hip else {},
        "flops": training_flops(case),
        "rate": matrix_rate(),
    }


def training_flops(case: Case) -> dict[str, int]:
    """FLOPs of the matrix products per step, of the naive form, by mode."""
    from hip_model.accounting import model_cost
    from hip_model.masking import MaskConfig

    full = model_cost(case.model.config, case.modalities)
    masked = model_cost(case.model.config, case.modalities, mask=MaskConfig())
    per_example = {
        "forward": full.forward_flops,
        "full": full.training_flops,
        "masked": masked.training_flops,
        "checkpointed": masked.training_flops,  # what it computes twice is no work of the model
    }
    return {mode: flops * case.batch for mode, flops in per_example.items()}


def forward_shares(case: Case) -> dict[str, float]:
    """CPU share of each block and of the rest (embedding, head) in one forward pass."""
    began: dict[str, float] = {}
    spent: dict[str, float] = {}
    hooks = []
    for index, block in enumerate(case.model.blocks):
        part = f"block {index}"
        hooks.append(block.register_forward_pre_hook(lambda *_, part=part: began.update({part: time.process_time()})))
        hooks.append(
            block.register_forward_hook(lambda *_, part=part: spent.update({part: time.process_time() - began[part]}))
        )
    start = time.process_time()
    case.forward()
    whole = time.process_time() - start
    for hook in hooks:
        hook.remove()
    spent["embedding and head"] = whole - sum(spent.values())
    return {part: seconds / whole * 100 for part, seconds in spent.items()}


def rows_of(name: str, size: str, found: dict[str, Any]) -> list[Row]:
    """The table's rows of one model and size."""
    case, rows = f"{name} {label(size)}", []
    for mode, seconds in found["cpu"].items():
        rows.append(Row(case, f"{mode}, CPU", "s", tuple(seconds)))
        rows.append(Row(case, f"{mode}, wall", "s", tuple(found["wall"][mode])))
    for mode, mib in found["memory"].items():
        rows.append(Row(case, f"{mode}, memory above the model", "MiB", (mib,)))
    for mode, flops in found["flops"].items():
        if mode in found["cpu"]:
            share = tuple(100 * flops / seconds / found["rate"] for seconds in found["cpu"][mode])
            rows.append(Row(case, f"{mode}, FLOP utilisation", "%", share, HIGHER))
    for other, base in (("masked", "full"), ("naive", "full"), ("checkpointed", "masked")):
        if other in found["cpu"] and base in found["cpu"]:
            ratio = tuple(a / b for a, b in zip(found["cpu"][other], found["cpu"][base], strict=True))
            rows.append(Row(case, f"{other} ÷ {base}, CPU", "×", ratio, NEITHER if other == "naive" else "lower"))
    rows += [Row(case, f"forward share of {part}", "%", (share,), NEITHER) for part, share in found["shares"].items()]
    return rows


def straight_lines(name: str, found: dict[str, dict[str, Any]]) -> list[Row]:
    """``a + b * tokens`` through the sizes of a model, for time and memory; errors count relative to the value."""
    rows = []
    for mode in ("full", "masked"):
        for what, unit, per_token in (("cpu", "s", "µs"), ("memory", "MiB", "B")):
            points = [
                (tokens_of(size), _least(entry[what][mode])) for size, entry in found.items() if mode in entry[what]
            ]
            if len(points) < 3:
                continue
            tokens, values = np.array(points, dtype=np.float64).T
            design = np.stack([np.ones_like(tokens), tokens], axis=1) / values[:, None]
            (fixed, slope), *_ = np.linalg.lstsq(design, np.ones_like(values), rcond=None)
            scale = 1e6 if what == "cpu" else 2.0**20
            case = f"{name} a + b·tokens"
            rows.append(Row(case, f"{mode}, {what}: a", unit, (float(fixed),), NEITHER))
            rows.append(Row(case, f"{mode}, {what}: b per token", per_token, (float(slope * scale),), NEITHER))
            residual = float(np.abs(design @ np.array([fixed, slope]) - 1).max() * 100)
            rows.append(Row(case, f"{mode}, {what}: largest misfit", "%", (residual,), NEITHER))
    return rows


def _least(value: Any) -> float:
    return float(min(value)) if isinstance(value, list | tuple) else float(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 1 where an output differs from the naive twin's."""
    parser = arguments_parser(__doc__, repeats=5)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--modes", nargs="+", default=("forward", "full", "masked"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--one", action="store_true", help="measure the first model and size here and print JSON")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.models, arguments.sizes, arguments.repeats = ("hip_nano",), ("8", "16", "32"), 1
    settings = arguments.repeats, arguments.threads, arguments.batch, arguments.modes
    from pipeline.host_memory import environment_of_cpu_workers, keep_freed_memory

    if arguments.one:
        keep_freed_memory()  # as training does, and for all that are compared
        print(json.dumps(measure(arguments.models[0], arguments.sizes[0], *settings)))
        return 0
    wrong = []
    for name in arguments.models:
        report, found = Report(f"model_step_{name}"), {}
        for size in arguments.sizes:
            flags = [
                "--models",
                name,
                "--sizes",
                size,
                "--modes",
                *arguments.modes,
                "--repeats",
                str(arguments.repeats),
            ]
            flags += ["--threads", str(arguments.threads), "--batch", str(arguments.batch), "--one"]
            one = {"OMP_NUM_THREADS": str(arguments.threads), **environment_of_cpu_workers()}
            try:
                found[size] = in_fresh_process("bench.model_step", flags, one)
            except RuntimeError as error:
                report.note(f"{name} {label(size)} was not measured: {str(error).splitlines()[-1]}")
                continue
            report.add(*rows_of(name, size, found[size]))
            if (found[size]["difference"] or 0.0) > _TOLERANCE:
                wrong.append(f"{name} {label(size)}: {found[size]['difference']:.2g} from the naive twin")
        report.add(*straight_lines(name, found))
        report.note(f"batch {arguments.batch}, {arguments.threads} thread(s), float32")
        report.finish(arguments.output if len(arguments.models) == 1 else None)
    for line in wrong:
        print(f"outputs differ: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
