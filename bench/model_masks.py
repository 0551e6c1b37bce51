"""Drawing masks for a batch of 8 audio + video examples (4.19 M tokens): every policy, and its inner step in two forms.

    python -m bench.model_masks

``sorting`` is how in-group patterns were drawn before (a stable sort of random keys, then a sort of either part);
``selecting`` what runs on a CPU now (the key at the border, then the positions below and above it). Both must agree.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.cases import modalities_of
from bench.harness import Report, Row, arguments_parser, ratio_row, time_in_turns
from hip_model import MaskConfig, mask_seeds
from hip_model.grouping import plan_groups
from hip_model.masking import _split, sample_selection
from hip_model.random_bits import random_bits

POLICIES = ("group_uniform", "independent", "tube", "modality")


def sorting(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The positions of the ``count`` smallest keys of each row and the others, by sorting."""
    order = keys.argsort(dim=-1, stable=True)
    return order[..., :count].sort(dim=-1).values, order[..., count:].sort(dim=-1).values


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 where the two forms draw different masks."""
    arguments = arguments_parser(__doc__, repeats=3).parse_args(argv)
    torch.set_num_threads(1)
    report = Report("model_masks")
    modalities, batch = modalities_of("32" if arguments.quick else "av"), 8
    plan = plan_groups(256, modalities)
    seeds = mask_seeds(0, torch.zeros(batch, dtype=torch.int64), torch.arange(batch))
    policies = POLICIES[:2] if arguments.quick else POLICIES
    timings = time_in_turns(
        {name: lambda name=name: sample_selection(MaskConfig(name), modalities, plan, seeds) for name in policies},  # type: ignore[misc]
        arguments.repeats,
    )
    for name, timing in timings.items():
        report.add(Row(f"policy {name}", "CPU", "ms", tuple(1e3 * value for value in timing.cpu_seconds)))
    length = plan.modalities[0].group_tokens
    keys = random_bits(seeds, plan.modalities[0].groups * length).reshape(batch, -1, length)
    count = MaskConfig().visible_tokens("", length)
    forms = time_in_turns(
        {"sorting": lambda: sorting(keys, count), "selecting": lambda: _split(keys, count)}, arguments.repeats
    )
    for name, timing in forms.items():
        report.add(Row(f"split by {name}", "CPU", "ms", tuple(1e3 * value for value in timing.cpu_seconds)))
        report.add(ratio_row(f"split by {name}", "CPU ÷ sorting", timing.cpu_seconds, forms["sorting"].cpu_seconds))
    report.finish(arguments.output)
    same = all(torch.equal(one, other) for one, other in zip(sorting(keys, count), _split(keys, count), strict=True))
    if not same:
        print("the two forms draw different masks", file=sys.stderr)
    return int(not same)


if __name__ == "__main__":
    raise SystemExit(main())
