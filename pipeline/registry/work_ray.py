"""Predictions on a Ray cluster: decoding tasks feed one actor that holds the model, so that it never waits."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.errors import InfrastructureError
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.registry.inference import Predictor
from pipeline.registry.work import Row, Window, decode_rows, predict_rows


class ModelActor:
    """Holds the model; takes batches of decoded windows."""

    def __init__(self, folder: str, kind: str, mask_ratio: float) -> None:
        self.predictor = Predictor.load(folder)
        self.kind, self.mask_ratio = kind, mask_ratio

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """One packed result a window: Arrow would need one fixed schema for three kinds of results."""
        count = len(batch["source"])
        rows = [{name: column[index] for name, column in batch.items()} for index in range(count)]
        return {"packed": [_pack(window) for window in predict_rows(self.predictor, rows, self.kind, self.mask_ratio)]}


def predict_on_ray(
    folder: str,
    sources: Sequence[str],
    recipe: TokenRecipe,
    kind: str,
    mask_ratio: float,
    batch_size: int,
    workers: int,
) -> Iterator[Window]:
    """Windows in the order they are done. Uses the running Ray, or starts one on this machine.

    Raises:
        InfrastructureError: Ray failed.
    """
    from pipeline.ray_session import ray_session

    with ray_session():
        yield from _windows(folder, sources, recipe, kind, mask_ratio, batch_size, workers)


def _windows(
    folder: str,
    sources: Sequence[str],
    recipe: TokenRecipe,
    kind: str,
    mask_ratio: float,
    batch_size: int,
    workers: int,
) -> Iterator[Window]:
    """The graph on a Ray that runs: decoding tasks, then one actor with the model."""
    import ray
    import torch

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    described = recipe.to_dict()

    def decode(item: dict[str, str]) -> list[Row]:
        return list(decode_rows(item["source"], TokenRecipe.from_dict(described)))

    gpus = 1 if torch.cuda.is_available() and ray.cluster_resources().get("GPU") else 0
    blocks = min(len(sources), 4 * workers)
    table = ray.data.from_items([{"source": source} for source in sources], override_num_blocks=blocks)
    results = table.flat_map(decode, concurrency=workers).map_batches(
        ModelActor,
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_gpus=gpus,
        fn_constructor_args=(folder, kind, mask_ratio),
    )
    try:
        for row in results.iter_rows():
            yield _unpack(row["packed"])
    except ray.exceptions.RayError as error:
        raise InfrastructureError(f"Ray failed while predicting: {str(error).splitlines()[-1]}") from error


def _pack(window: Window) -> bytes:
    """Length of the header, header as JSON, then the values and the files end to end."""
    values = b"" if window.values is None else np.asarray(window.values, dtype="<f4").tobytes()
    header = {
        "source": str(window.source),
        "start_seconds": float(window.start_seconds),
        "error": window.error,
        "values": None if window.values is None else len(values),
        "files": [(name, suffix, len(content)) for name, (suffix, content) in window.files.items()],
    }
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, values, *(content for _, content in window.files.values())])


def _unpack(packed: bytes) -> Window:
    end = 8 + int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8:end])
    values = None
    if header["values"] is not None:
        values = np.frombuffer(packed[end : end + header["values"]], dtype="<f4")
        end += header["values"]
    files = {}
    for name, suffix, size in header["files"]:
        files[name] = suffix, packed[end : end + size]
        end += size
    return Window(header["source"], header["start_seconds"], header["error"], values, files)
