"""Pictures of single examples."""

from __future__ import annotations

from pipeline.evaluate.figures import Picture
from pipeline.evaluate.session import Session


def example_pictures(session: Session) -> list[Picture]:
    return []
