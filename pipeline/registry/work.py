"""The two steps of a prediction, the same in one process and as Ray Data stages: decode a file, run the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import HipError
from pipeline.preprocess.limits import LimitsOptions
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.registry.inference import Predictor
from pipeline.registry.media import decode_item
from pipeline.registry.render import render
from pipeline.shards.schema import ModalitySpec
from pipeline.storage import redact

Row = dict[str, Any]
"""A window on its way to the model: source, start_seconds, error (empty: none), and per modality the raw bytes of its
tokens (empty: absent). No nulls, which Arrow, NumPy and pandas each spell in their own way."""


@dataclass(frozen=True)
class Window:
    """What the model said about one window of a file, or why the file cannot be used."""

    source: str
    start_seconds: float
    error: str | None = None
    values: np.ndarray | None = None  # embedding [D] or probabilities [classes]
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # modality -> (suffix, content)


def decode_rows(source: str, recipe: TokenRecipe) -> Iterator[Row]:
    """The windows of one file; a file that cannot be used gives one row with its reason."""
    shown = redact(source)
    try:
        for window in decode_item(source, recipe, LimitsOptions()):
            arrays = {name: b"" if array is None else array.tobytes() for name, array in window.arrays.items()}
            yield {"source": shown, "start_seconds": window.start_seconds, "error": "", **arrays}
    except HipError as error:
        nothing = {spec.name: b"" for spec in recipe.specs()}
        yield {"source": shown, "start_seconds": 0.0, "error": redact(str(error)), **nothing}


def predict_rows(predictor: Predictor, rows: Sequence[Row], kind: str, mask_ratio: float) -> list[Window]:
    """Run the model on the usable rows as one batch; the others keep their reason."""
    usable = [row for row in rows if not row["error"]]
    done = [Window(row["source"], row["start_seconds"], row["error"]) for row in rows if row["error"]]
    if not usable:
        return done
    examples = [{name: _array(spec, row.get(name, b"")) for name, spec in predictor.specs.items()} for row in usable]
    if kind == "reconstructions":
        arrays = predictor.reconstructions(examples, mask_ratio)
        for index, row in enumerate(usable):
            files = {name: render(predictor.specs[name], values[index]) for name, values in arrays.items()}
            done.append(Window(row["source"], row["start_seconds"], files=files))
        return done
    values = predictor.probabilities(examples) if kind == "labels" else predictor.embeddings(examples)
    return done + [
        Window(row["source"], row["start_seconds"], values=value) for row, value in zip(usable, values, strict=True)
    ]


def predict_here(
    predictor: Predictor, sources: Iterable[str], recipe: TokenRecipe, kind: str, mask_ratio: float, batch_size: int
) -> Iterator[Window]:
    """All in this process, file after file, batches filled across files."""
    rows = (row for source in sources for row in decode_rows(source, recipe))
    while batch := list(itertools.islice(rows, batch_size)):
        yield from predict_rows(predictor, batch, kind, mask_ratio)


def _array(spec: ModalitySpec, content: bytes) -> np.ndarray | None:
    if not content:
        return None
    return np.frombuffer(content, dtype=spec.dtype).reshape(spec.num_tokens, spec.num_channels)
