"""``hip <verb> [key=value …]``: find the verb's module and run it."""

from __future__ import annotations

import importlib
import sys

from jobs.broken_pipe import leave_quietly
from pipeline.errors import nearest

VERBS = {
    "demo": "the whole path on this machine with clips that it makes",
    "preprocess": "raw media to token shards",
    "combine": "several datasets of token shards as one",
    "inspect": "what is in a dataset of token shards",
    "pretrain": "masked-autoencoder pretraining",
    "tune": "search over geometry and training settings",
    "finetune": "supervised training from a pretrained model or from scratch",
    "evaluate": "reconstruction, probes, classification, retrieval, segmentation",
    "experiment": "the paper's comparisons, each with its table",
    "register": "package a model and add it to the registry",
    "promote": "move an alias through a metric gate",
    "predict": "raw media to embeddings, labels or reconstructions",
    "submit": "any of these as a job on a Ray cluster, or as a Kubernetes manifest",
    "plan": "parameters, memory, bytes and time of a job, before it starts",
    "doctor": "what is wrong with this machine or cluster, and how to mend it",
    "bench": "the benchmarks, each with its table and result file",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        try:
            print(_usage(), flush=True)
        except BrokenPipeError:
            return leave_quietly()
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name not in VERBS:
        print(f"error: no verb {name!r}: {nearest(name, VERBS)}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"jobs.{name}").main(rest))


def _usage() -> str:
    verbs = "\n".join(f"  {name:<11} {what}" for name, what in VERBS.items())
    return f"hip <verb> [key=value …]\n\n{verbs}\n\nhip <verb> --help shows the keys with examples."


if __name__ == "__main__":
    raise SystemExit(main())
