"""The reconstruction head's attention: many token queries over a group's few latents, in three forms, taking turns.

    python -m bench.model_head

``materialised``: scores of all tokens written out, the keys' own scores added, softmax, product (the form before);
``fused``: what the models run, the keys' scores carried in the free direction of the query norm, so that the fused
kernel of ``scaled_dot_product_attention`` does it all; ``naive``: four unfolded projections, as the paper states it.
Forward + backward of the attention with its norms and maps; outputs must agree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.harness import Report, Row, arguments_parser, peak_memory, ratio_row, time_in_turns
from hip_model.attention import CrossAttention, Keys

# Groups, queries a group, keys a group, query width, key width.
SHAPES = {
    "hip_16 224²": (16, 3136, 128, 32, 128),
    "hip_256 224²": (256, 196, 32, 16, 16),
    "hip_mini 512², 2 groups": (2, 16_384, 128, 32, 128),
    "hip_256 2048², 2 groups": (2, 16_384, 32, 16, 16),
}
QUICK = {"tiny": (2, 64, 8, 16, 16)}
_TOLERANCE = 1e-4


def materialised(layer: CrossAttention, queries: Tensor, keys: Tensor) -> Tensor:
    """Projections folded into the keys, scores written out for all tokens."""
    batch, groups = keys.shape[:2]
    values = layer.key_norm(keys)
    folded, scores = layer.query(layer.key(values), transposed=True)
    answers = layer.output(layer.value(values))
    scale = layer.key.in_features**-0.5
    asked = layer.query_norm(queries).expand(batch, -1, -1, -1).flatten(0, 1)
    added = scores.flatten(0, 1).unsqueeze(1)
    logits = torch.baddbmm(added, asked, folded.flatten(0, 1).transpose(1, 2), beta=scale, alpha=scale)
    return torch.bmm(logits.softmax(dim=-1), answers.flatten(0, 1)).view(batch, groups, queries.shape[2], -1)


def naive(layer: CrossAttention, queries: Tensor, keys: Tensor) -> Tensor:
    """Four projections, then attention."""
    values = layer.key_norm(keys)
    asked = layer.query(layer.query_norm(queries))
    logits = asked @ layer.key(values).transpose(-1, -2) * layer.key.in_features**-0.5
    result: Tensor = layer.output(logits.softmax(dim=-1) @ layer.value(values))
    return result


def fused(layer: CrossAttention, queries: Tensor, keys: Tensor) -> Tensor:
    """What the models run."""
    return layer._attend(queries, [Keys(keys)])


FORMS: dict[str, Callable[[CrossAttention, Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "materialised": materialised,
    "fused": fused,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every shape; 1 where two forms disagree."""
    arguments = arguments_parser(__doc__, repeats=9).parse_args(argv)
    torch.set_num_threads(1)
    report = Report("model_head")
    wrong = 0
    for name, (groups, count, num_keys, width, inner) in (QUICK if arguments.quick else SHAPES).items():
        torch.manual_seed(0)
        layer = CrossAttention(width, inner, 1, 1, residual=False)
        queries = torch.randn(1, groups, count, width, requires_grad=True)
        keys = torch.randn(1, groups, num_keys, inner, requires_grad=True)

        def step(form: Callable[..., Tensor], layer: CrossAttention, queries: Tensor, keys: Tensor) -> None:
            form(layer, queries, keys).square().mean().backward()

        steps = {kind: partial(step, form, layer, queries, keys) for kind, form in FORMS.items()}
        memory = {}
        for kind, run in steps.items():
            with peak_memory() as peak:
                run()
            memory[kind] = peak[0]
        timings = time_in_turns(steps, 1 if arguments.quick else arguments.repeats)
        before = timings["materialised"].cpu_seconds
        for kind, timing in timings.items():
            case = f"{name}, {kind}"
            report.add(Row(case, "CPU", "ms", tuple(1e3 * seconds for seconds in timing.cpu_seconds)))
            report.add(Row(case, "memory", "MiB", (memory[kind],)))
            report.add(ratio_row(case, "CPU ÷ materialised", timing.cpu_seconds, before))
        with torch.no_grad():
            results = [form(layer, queries, keys) for form in FORMS.values()]
        wrong += sum(float((result - results[0]).abs().max()) > _TOLERANCE for result in results)
    report.note(
        "predicted: the same products, but the scores (tokens x keys values, 4 to 16 MB a run of groups) are never "
        "written and read again in six passes: half the time and memory of the materialised form"
    )
    report.finish(arguments.output)
    if wrong:
        print(f"{wrong} outputs differ from the naive form's by more than {_TOLERANCE}", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
