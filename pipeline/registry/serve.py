"""What a registered model does when it is called: raw media in, embeddings, labels or reconstructions out."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from pipeline.errors import HipError
from pipeline.preprocess.decode import DecodedExample
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.registry.inference import Predictor
from pipeline.registry.media import decode_item
from pipeline.registry.render import render

_OUTPUTS = ("embeddings", "labels", "reconstructions")
_WINDOWS_PER_BATCH = 8


class ServedModel(PythonModel):
    """The pyfunc flavour. Input: a column ``media`` of paths, URIs, bytes or base64 text; one row out for one row in.

    A row that cannot be used has its reason in ``error``. Only when no row can be used is the request refused.
    """

    def load_context(self, context: Any) -> None:
        """Load weights, config and head from the packaged folder."""
        self.predictor = Predictor.load(context.artifacts["model"])
        self.recipe = TokenRecipe.from_dict(self.predictor.loaded.metadata["data"]["recipe"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row of results for each row of ``model_input``.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE (HTTP 400) for an unknown output, or when no row is usable.
        """
        params = {"output": "embeddings", "top_k": 5, "mask_ratio": 0.0} | (params or {})
        if params["output"] not in _OUTPUTS:
            raise _invalid(f"output={params['output']!r} is not known (valid: {', '.join(_OUTPUTS)})")
        if params["output"] == "labels" and self.predictor.head is None:
            raise _invalid("this model has no label head; ask for output=embeddings or output=reconstructions")
        rows = [self._row(item, params) for item in _media_column(model_input)]
        if rows and all(row.get("error") for row in rows):
            raise _invalid("; ".join(f"row {index}: {row['error']}" for index, row in enumerate(rows)))
        return _table(rows)

    def _row(self, item: object, params: dict[str, Any]) -> dict[str, Any]:
        try:
            windows = decode_item(item, self.recipe)
            if params["output"] == "reconstructions":
                return {**self._reconstruction(next(windows), float(params["mask_ratio"])), "error": None}
            if params["output"] == "labels":
                return {**self._labels(windows, int(params["top_k"])), "error": None}
            return {**self._embedding(windows), "error": None}
        except HipError as error:
            return {"error": str(error)}

    def _embedding(self, windows: Iterable[DecodedExample]) -> dict[str, Any]:
        values = np.concatenate([self.predictor.embeddings(batch) for batch in _batches(windows)])
        return {"embedding": values.mean(axis=0).tolist(), "windows": len(values)}

    def _labels(self, windows: Iterable[DecodedExample], top_k: int) -> dict[str, Any]:
        """The mean over the windows' probabilities, highest first."""
        values = np.concatenate([self.predictor.probabilities(batch) for batch in _batches(windows)])
        scores = values.mean(axis=0)
        best = np.argsort(-scores)[: max(1, top_k)]
        names = self.predictor.require_head().label_names
        return {"labels": [names[i] for i in best], "scores": scores[best].tolist(), "windows": len(values)}

    def _reconstruction(self, window: DecodedExample, mask_ratio: float) -> dict[str, Any]:
        """The first window's modalities as base64 of MP4, PNG, WAV or .npy files."""
        arrays = self.predictor.reconstructions([window.arrays], mask_ratio)
        files = {name: render(self.predictor.specs[name], values[0]) for name, values in arrays.items()}
        return {f"{name}_{suffix}": base64.b64encode(content).decode() for name, (suffix, content) in files.items()}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table of plain objects, so that what is missing stays None and becomes null in JSON, not NaN."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns})


def _batches(windows: Iterable[DecodedExample]) -> Iterator[list[dict[str, np.ndarray | None]]]:
    iterator = iter(windows)
    while batch := [window.arrays for window in itertools.islice(iterator, _WINDOWS_PER_BATCH)]:
        yield batch


def _media_column(model_input: Any) -> list[object]:
    if isinstance(model_input, pd.DataFrame):
        if "media" not in model_input:
            raise _invalid(f"the input needs a column 'media', it has {', '.join(map(str, model_input.columns))}")
        return list(model_input["media"])
    raise _invalid(f"the input must be a table with a column 'media', got {type(model_input).__name__}")


def _invalid(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
