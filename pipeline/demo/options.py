"""Options of the demonstration."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UserError


@dataclass(frozen=True)
class DemoOptions:
    """What the demonstration runs on, and where."""

    folder: str = "hip-demo"  # everything is written below this folder
    source: str | None = None  # your own media; null: clips made here
    clips: int = 96  # clips made
    steps: int = 300  # pretraining steps
    trials: int = 4  # trials of the search
    restart: bool = False  # throw the earlier demonstration in this folder away
    seed: int = 0

    def __post_init__(self) -> None:
        for key, least in (("clips", 8), ("steps", 4), ("trials", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise UserError(f"{key}={getattr(self, key)}: at least {least}")
        if not self.folder.strip():
            raise UserError("folder is empty; give a path, like folder=hip-demo")
