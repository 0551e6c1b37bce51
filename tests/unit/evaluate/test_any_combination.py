"""Whatever is asked of whatever data, an evaluation ends in finite numbers or in a sentence, never in a traceback."""

import math
import tempfile
from pathlib import Path

import numpy as np
from evaluation_data import ModalitySpec, write_dataset, write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.evaluate.options import (
    POOLS,
    PROBE_KINDS,
    TASKS,
    EmbedOptions,
    EvaluateFigureOptions,
    EvaluateOptions,
    IntervalOptions,
    LimitOptions,
    MaskSweepOptions,
    ProbeOptions,
    RetrievalOptions,
    SegmentationOptions,
)
from pipeline.evaluate.runner import evaluate
from pipeline.shards.schema import ExampleRow
from pipeline.tracking.options import TrackingOptions

MODALITIES = {
    "image": ModalitySpec("image", (8, 8), 3, "uint8", token_order="morton"),
    "segmentation": ModalitySpec("segmentation", (8, 8), 1, "uint8", token_order="morton"),
    "video": ModalitySpec("video", (2, 8, 8), 3, "uint8", token_order="time_major"),
    "audio": ModalitySpec("audio", (50,), 2, "int16"),
    "points": ModalitySpec("points", (50,), 3, "float32", token_order="kd"),
}


@st.composite
def datasets(draw):
    """Modalities, rows by split and label names; examples may lack signals, labels, or everything but one signal."""
    names = draw(st.lists(st.sampled_from(sorted(MODALITIES)), min_size=1, max_size=4, unique=True))
    labels = draw(st.sampled_from([(), ("a",), ("a", "b", "c")]))
    most_labels = draw(st.sampled_from([1, len(labels)]))
    rows = {}
    for split in draw(st.sampled_from([("train", "validation")] * 3 + [("validation",)])):
        rows[split] = [draw(examples(split, i, names, labels, most_labels)) for i in range(draw(st.integers(1, 8)))]
    return [MODALITIES[name] for name in names], rows, labels


@st.composite
def examples(draw, split, index, names, labels, most_labels):
    random = np.random.default_rng([index, len(split)])
    lacking = draw(st.sets(st.sampled_from(names), max_size=len(names) - 1)) if draw(st.booleans()) else set()
    arrays = {}
    for name in names:
        spec = MODALITIES[name]
        values = random.integers(0, max(1, len(labels)), (spec.num_tokens, spec.num_channels))
        arrays[name] = None if name in lacking else values.astype(spec.dtype)
    found = draw(st.sets(st.integers(0, len(labels) - 1), max_size=most_labels)) if labels else ()
    return ExampleRow(random.bytes(16), f"{split}{index // 2}", float(index % 2), tuple(sorted(found)), arrays)


BOUNDS = st.none() | st.integers(1, 5)
ASKED = st.fixed_dictionaries(
    {
        "task": st.sampled_from(TASKS),
        "split": st.sampled_from(["validation", "train"]),
        "embed": st.builds(EmbedOptions, batch_size=st.sampled_from([1, 3]), chunk_examples=st.sampled_from([2, 256])),
        "probe": st.builds(
            ProbeOptions,
            kind=st.sampled_from(PROBE_KINDS),
            level=st.sampled_from(["encoder", "processor", "all", "0", "2"]),
            pool=st.sampled_from(POOLS),
            strengths=st.just((0.1,)),
            iterations=st.just(2),
        ),
        "mask": st.builds(
            MaskSweepOptions,
            policy=st.sampled_from(["group_uniform", "independent", "tube", "modality", "attention"]),
            ratios=st.sampled_from([(0.5,), (0.01, 0.99)]),
        ),
        "retrieval": st.builds(RetrievalOptions, align=st.booleans(), ranks=st.just((1, 5))),
        "segmentation": st.builds(
            SegmentationOptions, iterations=st.just(2), train=st.sampled_from(["head", "full"]), ignore=st.just(255)
        ),
        "limit": st.builds(LimitOptions, fit_examples=BOUNDS, score_examples=BOUNDS),
        "figures": st.builds(EvaluateFigureOptions, enabled=st.booleans(), examples=st.just(2)),
    }
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(dataset=datasets(), model=st.sampled_from(["hip_nano", "hip_micro", "perceiver_tiny"]), asked=ASKED)
def test_an_evaluation_ends_in_numbers_or_in_a_sentence(dataset, model, asked):
    specs, rows, labels = dataset
    with tempfile.TemporaryDirectory() as folder:
        shards = write_dataset(Path(folder) / "data", rows, specs, labels)
        options = EvaluateOptions(
            shards=shards,
            model=write_model(Path(folder) / "model", shards, model),
            output=str(Path(folder) / "report"),
            interval=IntervalOptions(resamples=20),
            tracking=TrackingOptions(enabled=False),
            **asked,
        )
        try:
            report = evaluate(options)
        except UserError as error:
            assert len(str(error)) > 20  # noqa: PT017
            return
        assert report.metrics
        assert not any(math.isinf(estimate.value) for estimate in report.metrics.values())
        assert Path(report.html_path).stat().st_size > 500
