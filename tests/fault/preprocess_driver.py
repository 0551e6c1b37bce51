"""A whole ``run_preprocess`` in a process of its own, to be killed by the tests."""

from __future__ import annotations

import sys

from pipeline.errors import HipError
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.recipe import AudioRecipe, TokenRecipe, VideoRecipe
from pipeline.preprocess.run import run_preprocess

RECIPE = TokenRecipe(clip_seconds=0.5, stride_seconds=0.25, video=VideoRecipe(4, 48, 48), audio=AudioRecipe(4000))


def options(source: str, shards: str) -> PreprocessOptions:
    """Options under which the demo clips make about ten small shards."""
    return PreprocessOptions(source, shards, RECIPE, validation_fraction=0.2, shard_megabytes=0.5)


if __name__ == "__main__":
    try:
        run_preprocess(options(sys.argv[1], sys.argv[2]))
    except HipError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error
