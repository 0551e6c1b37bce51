"""Makes one film into a shard in a process of its own and prints its peaks of memory, in MiB, and the examples."""

from __future__ import annotations

import json
import resource
import sys

from pipeline.preprocess.box import _box
from pipeline.preprocess.identify import identify
from pipeline.preprocess.limits import LimitsOptions
from pipeline.preprocess.listing import stat_source
from pipeline.preprocess.plan import Plan, extend_plan
from pipeline.preprocess.recipe import AudioRecipe, TokenRecipe, VideoRecipe
from pipeline.preprocess.task import ShardTask, run_task

RECIPE = TokenRecipe(clip_seconds=2.56, video=VideoRecipe(8, 64, 64), audio=AudioRecipe(8000))


def main(film: str, dataset: str) -> None:
    """One task with the film as its only source."""
    source = stat_source(film, "film.mkv")
    limits = LimitsOptions()
    plan = extend_plan(Plan(RECIPE, 0.0), [(source, identify(source, limits))], 64e6)
    (name, members), *others = plan.tasks().items()
    assert not others
    record = run_task(ShardTask(name, dataset, RECIPE, limits, 64e6, (), tuple(members)))
    _box().close()
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    rows = [row.examples for row in record.rows]
    print(json.dumps({"writer": peaks[0], "decoder": peaks[1], "examples": rows, "shards": len(record.shards)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
