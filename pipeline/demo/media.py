"""The media of a demonstration: clips made here, or the user's own with a recipe that fits them."""

from __future__ import annotations

from pathlib import Path, PurePath

import numpy as np

from pipeline.demo.clips import make_demo_clips
from pipeline.demo.options import DemoOptions
from pipeline.errors import UserError
from pipeline.preprocess.kinds import AUDIO_VIDEO, IMAGE, POINTS, kind_of_name
from pipeline.preprocess.listing import list_media
from pipeline.shards.reader import ShardReader
from pipeline.storage import join, write_atomic

_RECIPES = {  # kinds of file -> tokens of the recipe
    frozenset({AUDIO_VIDEO}): "demo",
    frozenset({AUDIO_VIDEO, IMAGE}): "demo_mixed",
    frozenset({IMAGE}): "image_32",
    frozenset({POINTS}): "points_512",
}
_UNSEEN_CLIPS = 12


def make_media(options: DemoOptions, folder: Path) -> None:
    """Write the clips to train on, and a few more of the same kinds that training never sees."""
    for name, count, seed in (("clips", options.clips, options.seed), ("unseen", _UNSEEN_CLIPS, options.seed + 1)):
        if not (folder / name).exists():
            make_demo_clips(folder / f".{name}", count, seed)
            (folder / f".{name}").rename(folder / name)


def recipe_for(source: str) -> str:
    """The name of the token recipe for the kinds of file below ``source``.

    Raises:
        UserError: there is no such folder, or no media in it.
    """
    try:
        names = [item.name for item in list_media(source)]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"source={source} is not a folder; give one with video, audio, images or points") from error
    kinds = frozenset(kind for kind in map(kind_of_name, names) if kind)
    if not kinds:
        examples = ", ".join(sorted({PurePath(name).suffix or name for name in names})[:5]) or "nothing"
        raise UserError(f"source={source} holds no media (found: {examples}); it may be mp4, wav, jpg, png, npz, …")
    return _RECIPES.get(kinds) or _RECIPES[kinds - {POINTS}]


def write_unseen(source: str, shards: str, table: Path) -> int:
    """Write a table of the files in the validation split, which training never saw; returns how many."""
    reader = ShardReader(shards, split="validation")
    names = sorted(set(reader.read(np.arange(len(reader))).sources)) if len(reader) else []
    write_atomic(str(table), "\n".join(["path", *(f'"{join(source, name)}"' for name in names), ""]).encode())
    return len(names)
