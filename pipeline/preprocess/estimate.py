"""What preprocessing a source will take: a few files are made into real shards, the rest follow by their size."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass

import psutil

from pipeline.errors import DataError
from pipeline.preprocess.box import probe_seconds_boxed
from pipeline.preprocess.identify import identify
from pipeline.preprocess.kinds import kind_of_name
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.listing import Source
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.plan import Plan, PlannedSource, extend_plan
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.preprocess.sources import list_sources
from pipeline.preprocess.task import ShardTask, run_task
from pipeline.storage import redact

_SAMPLED_FILES = 16  # of each kind


@dataclass(frozen=True)
class PreprocessEstimate:
    """``examples`` and ``core_seconds`` are those expected of all ``files``; ``sampled`` of them were decoded."""

    files: int
    sampled: int
    examples: int
    core_seconds: float


def estimate_preprocessing(location: str, recipe: TokenRecipe) -> PreprocessEstimate:
    """Decode and write a sample of the source's files into a folder that is thrown away.

    Files are sampled at even steps through their sizes, each kind (sound and video, images, points) by itself.

    Raises:
        UserError: the source is missing or empty.
        DataError: no sampled file gave an example.
    """
    sources = list_sources(PreprocessOptions(location, "none", recipe))
    kinds = sorted({kind for source in sources if (kind := kind_of_name(source.name))})
    parts = [_estimate([source for source in sources if kind_of_name(source.name) == kind], recipe) for kind in kinds]
    total = PreprocessEstimate(
        files=sum(part.files for part in parts),
        sampled=sum(part.sampled for part in parts),
        examples=sum(part.examples for part in parts),
        core_seconds=sum(part.core_seconds for part in parts),
    )
    if not total.examples:
        raise DataError(f"none of {total.sampled} files of {redact(location)} gives an example; see hip preprocess")
    return total


def _estimate(sources: list[Source], recipe: TokenRecipe) -> PreprocessEstimate:
    ordered = sorted(sources, key=lambda source: (source.bytes, source.name))
    count = min(_SAMPLED_FILES, len(ordered))
    sample = [ordered[int((number + 0.5) * len(ordered) / count)] for number in range(count)]
    if count > 1:
        _decode(sample[:1], recipe)  # loads what decoding needs, which a long run does not notice
    examples, seconds = _decode(sample, recipe)
    grow = _size(sources) / max(1, _size(sample))
    return PreprocessEstimate(len(sources), count, round(examples * grow), seconds * grow)


def _size(sources: list[Source]) -> int:
    """Bytes; segments of a file count alike."""
    return sum(1 if source.segment else max(0, source.bytes) for source in sources)


def _decode(sample: list[Source], recipe: TokenRecipe) -> tuple[int, float]:
    """Examples of the sample, and the processor time of identifying, decoding and writing it, children included."""
    limits = LimitsOptions()
    with suppress(MediaError):
        probe_seconds_boxed(__file__, limits)  # starts the decoding child, whose import is no file's
    with tempfile.TemporaryDirectory() as folder:
        before = _cpu_seconds()
        found = [(source, identify(source, limits)) for source in sample]
        plan = extend_plan(Plan(recipe, 0.0), found, _shard_bytes())
        records = [run_task(_task(name, folder, plan, members)) for name, members in plan.tasks().items()]
        seconds = _cpu_seconds() - before
    return sum(row.examples for record in records for row in record.rows), seconds


def _task(name: str, folder: str, plan: Plan, members: list[PlannedSource]) -> ShardTask:
    return ShardTask(name, folder, plan.recipe, LimitsOptions(), _shard_bytes(), plan.label_names, tuple(members))


def _shard_bytes() -> float:
    return PreprocessOptions.shard_megabytes * 1e6


def _cpu_seconds() -> float:
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in [here, *here.children(recursive=True)])
