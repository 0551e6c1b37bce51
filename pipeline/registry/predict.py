"""Run a model on a file, a folder or a table of media, and write what it says."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import DataError, UserError
from pipeline.preprocess.kinds import kind_of_name
from pipeline.preprocess.listing import list_media
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.preprocess.tables import read_table_sources
from pipeline.registry.inference import Predictor
from pipeline.registry.options import PredictOptions
from pipeline.registry.resolve import PACKAGED, WEIGHTS, fetch_registered, resolve_model
from pipeline.registry.results import write_embeddings, write_failures, write_labels, write_reconstructions
from pipeline.registry.work import Window, predict_here
from pipeline.storage import absolute, exists, join, name_of, redact, resolve, write_atomic

logger = logging.getLogger(__name__)

_FILES_WITHOUT_RAY = 64
_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class PredictReport:
    """What was done."""

    files: int
    windows: int
    failed: dict[str, str]  # source -> reason
    outputs: list[str]
    labels: list[list[str]] = field(default_factory=list)  # lines of labels.csv without its header


def predict(options: PredictOptions) -> PredictReport:
    """Predict, skip and report the files that cannot be used, and write the results below ``options.output``.

    Raises:
        UserError: no model, no input, or an output that the model cannot give.
        DataError: not one file could be used.
    """
    if options.trust and options.model.startswith("models:/"):
        package, _ = fetch_registered(options.model, options.storage, options.tracking)
        if not (package / PACKAGED / WEIGHTS).is_file():
            return _predict_trusted(package, options)
    folder = resolve_model(options.model, options.storage, options.tracking)
    predictor = Predictor.load(folder)
    recipe = _recipe(predictor, options.model)
    if options.kind == "labels":
        predictor.require_head()
    sources = list_inputs(options.input)
    windows, failed, outputs = [], {}, []
    for window in _with_progress(_windows(options, str(folder), predictor, recipe, sources), len(sources)):
        if window.error is not None:
            failed[window.source] = window.error
            logger.warning("skipped %s: %s", redact(window.source), window.error)
        elif window.files:
            outputs += write_reconstructions(window, options.output)
            windows.append(Window(window.source, window.start_seconds))
        else:
            windows.append(window)
    if failed:
        failures = [Window(source, 0.0, reason) for source, reason in sorted(failed.items())]
        outputs.append(write_failures(failures, options.output))
    if not windows:
        reasons = "; ".join(f"{redact(source)}: {reason}" for source, reason in list(failed.items())[:3])
        raise DataError(f"none of the {len(sources)} files could be used ({reasons})")
    windows.sort(key=lambda window: (window.source, window.start_seconds))
    return _write(options, predictor, windows, failed, outputs, len(sources))


def list_inputs(location: str) -> list[str]:
    """The media that ``location`` names: itself, those in a folder, or those in a table's column ``path``.

    Raises:
        UserError: nothing is there.
    """
    if not exists(location):
        raise UserError(
            f"input={redact(location)} does not exist; give a media file, a folder, or a table (csv, parquet)"
        )
    system, path = resolve(location)
    if not system.get_file_info(path).is_file:
        sources = [source.location for source in list_media(location)]
    elif kind_of_name(name_of(location)) is None and name_of(location).lower().endswith((".csv", ".parquet", ".txt")):
        sources = [source.location for source in read_table_sources(location, "auto", None)]
    else:
        sources = [absolute(location)]
    if not sources:
        raise UserError(f"input={redact(location)} holds no files")
    return sources


def _predict_trusted(package: Path, options: PredictOptions) -> PredictReport:
    """A model from elsewhere, whose own code the user trusts: it gets the column ``media`` and its answer is kept."""
    import pandas as pd
    from mlflow.pyfunc import load_model

    sources = list_inputs(options.input)
    answer = load_model(str(package)).predict(pd.DataFrame({"media": sources}))
    target = join(options.output, "predictions.json")
    write_atomic(target, pd.DataFrame(answer).to_json(orient="records").encode())
    return PredictReport(len(sources), len(sources), {}, [target])


def _recipe(predictor: Predictor, model: str) -> TokenRecipe:
    recipe = predictor.loaded.metadata["data"].get("recipe")
    if not recipe:
        raise UserError(
            f"model={model} carries no token recipe, so it cannot read media; train it on preprocessed shards"
        )
    return TokenRecipe.from_dict(recipe)


def _windows(
    options: PredictOptions, folder: str, predictor: Predictor, recipe: TokenRecipe, sources: list[str]
) -> Iterator[Window]:
    workers = options.workers
    if workers is None:
        workers = 0 if len(sources) <= _FILES_WITHOUT_RAY else max(1, (os.cpu_count() or 2) - 1)
    if workers == 0:
        return predict_here(predictor, sources, recipe, options.kind, options.mask_ratio, options.batch_size)
    from pipeline.registry.work_ray import predict_on_ray

    return predict_on_ray(folder, sources, recipe, options.kind, options.mask_ratio, options.batch_size, workers)


def _with_progress(windows: Iterator[Window], num_files: int) -> Iterator[Window]:
    """Pass windows through and log a line now and then."""
    started = last = time.monotonic()
    seen = set()
    for count, window in enumerate(windows, start=1):
        yield window
        seen.add(window.source)
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last = now
            left = (now - started) / len(seen) * (num_files - len(seen))
            logger.info("predict: %d/%d files, %d windows, %.0f s left", len(seen), num_files, count, left)


def _write(
    options: PredictOptions,
    predictor: Predictor,
    windows: list[Window],
    failed: dict[str, str],
    outputs: list[str],
    num_files: int,
) -> PredictReport:
    labels: list[list[str]] = []
    if options.kind == "labels":
        path, labels = write_labels(windows, predictor.require_head().label_names, options.top_k, options.output)
        outputs.append(path)
    elif options.kind == "embeddings":
        outputs.append(write_embeddings(windows, options.output, options.format))
    return PredictReport(num_files, len(windows), failed, outputs, labels)
