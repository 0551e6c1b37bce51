"""The models beside what a user would otherwise pick, in turns on one core with the same inputs and outputs.

    python -m bench.model_peers --peers jax_hip_mini jax_hip_16 jax_hip_256 transformers perceiver_pytorch classifiers

The peers are not dependencies: run this with a Python that has them, and this repository on ``PYTHONPATH``; a peer that
cannot be imported is left out with a note. ``jax_*`` is the original release (package ``hierarchical_perceiver`` on the
path) with the same parameters, and its output is compared with ours. One result file per peer.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import peer_models
from bench.cases import Case, build_case, label
from bench.harness import HIGHER, Report, Row, arguments_parser, in_fresh_process, peak_memory, ratio_row, time_in_turns

PEERS = {
    "jax_hip_mini": ("hierarchical_perceiver.perceiver", "hip_mini"),
    "jax_hip_16": ("hierarchical_perceiver.perceiver", "hip_16"),
    "jax_hip_256": ("hierarchical_perceiver.perceiver", "hip_256"),
    "transformers": ("transformers", "hip_16"),
    "perceiver_pytorch": ("perceiver_pytorch", "hip_16"),
    "classifiers": ("timm", "hip_16"),
}
"""Module that must be importable, and our model beside it."""

PACKAGES = ("jax", "jaxlib", "dm-haiku", "transformers", "perceiver-pytorch", "timm")


def measure(peer: str, size: str, repeats: int) -> dict[str, Any]:
    """One peer beside our model: seconds per turn, memory in MiB, and the difference of outputs for the original."""
    # XLA takes every core it sees, whatever it is told; it must be pinned before it is imported.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    ours = build_case(PEERS[peer][1], size)
    actions: dict[str, Callable[[], Any]] = {"ours": ours.full}
    difference = None
    if peer.startswith("jax"):
        theirs = peer_models.JaxTwin(ours.model, ours.modalities[0])
        difference = theirs.difference(ours)
        actions = {"peer": lambda: theirs.step(ours.inputs), **actions, **_forms(ours, peer, size)}
    elif peer == "classifiers":
        actions |= {f"peer {name}": step for name, step in peer_models.classifier_steps(int(size)).items()}
        actions["ours hip_256"] = build_case("hip_256", size).full
    else:
        actions["peer"] = getattr(peer_models, f"{peer}_step")(ours)
    memory = {}
    for name, action in actions.items():
        ours.renew()
        with peak_memory() as peak:
            action()
        memory[name] = peak[0]
    timings = time_in_turns(actions, repeats, warm_up=0, prepare=ours.renew)
    cpu = {name: timing.cpu_seconds for name, timing in timings.items()}
    return {"cpu": cpu, "memory": memory, "difference": difference}


def _forms(case: Case, peer: str, size: str) -> dict[str, Callable[[], Any]]:
    """Our own step in bfloat16 where the processor has it and, for the smallest model, compiled."""
    from pipeline.train.precision import slow_bfloat16

    def autocast() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            error = case.error(case.inputs)
        error.backward()

    halved = build_case(PEERS[peer][1], size)
    halved.model.bfloat16()

    def bfloat16() -> None:
        halved.model.zero_grad(set_to_none=True)
        inputs = {name: values.bfloat16() for name, values in case.inputs.items()}
        output = halved.model(inputs).reconstruction
        torch.stack(
            [(output[name].float() - values).square().mean() for name, values in case.inputs.items()]
        ).mean().backward()

    forms: dict[str, Callable[[], Any]] = {}
    if slow_bfloat16(torch.device("cpu"), "bf16") is None:  # emulated, a step takes minutes
        forms = {"ours bf16 autocast": autocast, "ours bf16 weights": bfloat16}
    if peer == "jax_hip_mini":
        compiled = torch.compile(case.error)  # the original's loss is compiled with its model too

        def compiled_step() -> None:
            compiled(case.inputs).backward()

        forms["ours compiled"] = compiled_step
    return forms


def rows_of(peer: str, size: str, found: dict[str, Any]) -> list[Row]:
    """Seconds, memory and the ratios ours ÷ peer."""
    rows = []
    theirs = [name for name in found["cpu"] if name.startswith("peer")]
    for name, seconds in found["cpu"].items():
        case = f"{peer} {label(size)}: {name}"
        rows.append(Row(case, "step, CPU", "s", tuple(seconds)))
        rows.append(Row(case, "throughput", "examples per CPU-s", tuple(1 / value for value in seconds), HIGHER))
        # The original's first call holds its compiler's memory too.
        has_memory = not peer.startswith("jax")
        if has_memory:
            rows.append(Row(case, "memory above the model", "MiB", (found["memory"][name],)))
        if name not in theirs and len(theirs) == 1:
            rows.append(ratio_row(case, "time ÷ peer", seconds, found["cpu"]["peer"]))
            rows.append(Row(case, "least time ÷ least of peer", "×", (min(seconds) / min(found["cpu"]["peer"]),)))
            if has_memory:
                rows.append(Row(case, "memory ÷ peer", "×", (found["memory"][name] / found["memory"]["peer"],)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every peer that can be imported; each writes its own result."""
    parser = arguments_parser(__doc__, repeats=5)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--size", default="224")
    parser.add_argument("--one", action="store_true", help="measure the first peer here and print JSON")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.size, arguments.repeats = "32", 1
    from pipeline.host_memory import environment_of_cpu_workers, keep_freed_memory

    if arguments.one:
        keep_freed_memory()  # as training does, and for all that are compared
        print(json.dumps(measure(arguments.peers[0], arguments.size, arguments.repeats)))
        return 0
    for peer in arguments.peers:
        report = Report(f"model_peers_{peer}", PACKAGES)
        try:
            importlib.import_module(PEERS[peer][0])
        except ImportError as error:
            print(f"{peer} is left out: {error}")
            continue
        flags = ["--peers", peer, "--size", arguments.size, "--repeats", str(arguments.repeats), "--one"]
        found = in_fresh_process("bench.model_peers", flags, {"OMP_NUM_THREADS": "1", **environment_of_cpu_workers()})
        report.add(*rows_of(peer, arguments.size, found))
        report.note("batch 1, one core, float32 unless the case says bf16; forward + backward, all tokens in and out")
        if found["difference"] is not None:
            report.note(f"largest difference of our output to the peer's, same parameters: {found['difference']:.2g}")
        report.finish(arguments.output if len(arguments.peers) == 1 else None)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
