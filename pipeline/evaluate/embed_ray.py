"""The same pieces as :mod:`pipeline.evaluate.embed`, computed by Ray Data actors that each hold the model once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.evaluate.embed import EmbedRequest, compute_pieces, save_piece
from pipeline.evaluate.options import EmbedOptions
from pipeline.host_memory import keep_freed_memory
from pipeline.storage import absolute


class PieceEmbedder:
    """An actor: opens model and shards at its start, then writes one piece a call."""

    def __init__(self, model: str, device: str, request: EmbedRequest, batch_size: int, folder: str) -> None:
        from pipeline.evaluate.loaded import load_model
        from pipeline.shards.reader import ShardReader

        keep_freed_memory()
        self.loaded = load_model(model, device)
        self.reader = ShardReader(request.shards, split=request.split, specs=request.specs)
        self.request, self.batch_size, self.folder = request, batch_size, folder

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write each piece of the batch; gives back its bounds only, so nothing large crosses the object store."""
        pieces = [(int(start), int(stop)) for start, stop in zip(batch["start"], batch["stop"], strict=True)]
        for bounds, piece in compute_pieces(self.loaded, self.reader, self.request, self.batch_size, pieces):
            save_piece(self.folder, bounds, piece)
        return {"rows": np.asarray(batch["stop"]) - np.asarray(batch["start"])}


def embed_pieces(
    model: str,
    device: str,
    request: EmbedRequest,
    options: EmbedOptions,
    folder: str,
    pieces: list[tuple[int, int]],
) -> None:
    """Compute ``pieces`` on ``options.workers`` actors of the running Ray cluster; if none runs, start a local one."""
    import ray

    from pipeline.ray_session import ray_session

    with ray_session():
        # Actors may run in other folders than this process.
        request, folder = replace(request, shards=absolute(request.shards)), absolute(folder)
        table = ray.data.from_items([{"start": start, "stop": stop} for start, stop in pieces])
        written = table.repartition(len(pieces)).map_batches(
            PieceEmbedder,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(options.workers, len(pieces))),
            num_gpus=options.gpus_per_worker,
            fn_constructor_args=(model, device, request, options.batch_size, folder),
        )
        written.materialize()
