"""Pooled latents of every example, computed in pieces that outlive an interruption."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from hip_model.selection import TokenSelection
from pipeline import storage
from pipeline.errors import UserError
from pipeline.evaluate.head import POOLS, pooled_parts
from pipeline.evaluate.loaded import LoadedModel
from pipeline.evaluate.options import EmbedOptions
from pipeline.evaluate.reading import Progress, examples_a_read, read_ahead, spans
from pipeline.ingest.spread import spread
from pipeline.shards.reader import Batch, ShardReader
from pipeline.shards.schema import ModalitySpec

# Arrays by name, one row an example, but for ``labels``: one JSON list of the labels of each read.
Piece = dict[str, np.ndarray]

_VERSION = 4  # raised when the content of a piece changes meaning


@dataclass(frozen=True)
class EmbedRequest:
    """What is embedded, and all that its values depend on."""

    shards: str
    split: str
    count: int
    level_count: int  # levels 0 .. level_count - 1; more than the encoder has asks for the decoder too
    modalities: tuple[str, ...] | None = None  # hide all others; none: hide nothing
    specs: tuple[ModalitySpec, ...] | None = None  # what is read; none: all. Not in the key: weights and data decide it

    def key(self, weights: str, fingerprint: str) -> str:
        """The folder name of the finished pieces."""
        parts = [_VERSION, weights, fingerprint, self.split, self.count, self.level_count, self.modalities]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Embeddings:
    """Pooled latents and what is known about their examples; every array has one row an example."""

    levels: list[dict[str, np.ndarray]]  # by level, the parts of ``pooled_parts``: float32 [N, width]
    labels: list[tuple[int, ...]]
    sources: list[str]
    start_seconds: np.ndarray
    example_ids: np.ndarray
    present: dict[str, np.ndarray]  # bool [N] by modality: what the example has

    def __len__(self) -> int:
        return len(self.sources)

    def features(self, levels: Sequence[int], pool: str) -> np.ndarray:
        """What :func:`pool_features` gives for these levels: float32 [N, sum of widths]."""
        return np.concatenate([self.levels[level][part] for level in levels for part in POOLS[pool]], axis=1)

    def labelled(self) -> Embeddings:
        """Without the examples that have no label; all of them where any has several (none is then an answer too)."""
        if all(self.labels) or any(len(classes) > 1 for classes in self.labels):
            return self
        rows = np.array([bool(classes) for classes in self.labels])
        return Embeddings(
            levels=[{part: values[rows] for part, values in level.items()} for level in self.levels],
            labels=[classes for classes in self.labels if classes],
            sources=[source for source, kept in zip(self.sources, rows, strict=True) if kept],
            start_seconds=self.start_seconds[rows],
            example_ids=self.example_ids[rows],
            present={name: flags[rows] for name, flags in self.present.items()},
        )


def embed(
    loaded: LoadedModel, weights: str, reader: ShardReader, request: EmbedRequest, options: EmbedOptions, cache: str
) -> Embeddings:
    """Embed ``request.count`` examples from all over a split; finished pieces under ``cache`` are read, not computed.

    ``weights`` is the digest of the model's.

    Raises:
        UserError: the split is empty.
    """
    if request.count == 0:
        raise UserError(f"{request.shards} has no examples in split {request.split!r}")
    folder = storage.join(cache, request.key(weights, reader.manifest.fingerprint))
    pieces = spans(request.count, options.chunk_examples)
    missing = [piece for piece in pieces if not storage.exists(_location(folder, *piece))]
    computed: dict[tuple[int, int], Piece] = {}
    if options.engine == "ray" and missing:
        from pipeline.evaluate.embed_ray import embed_pieces

        embed_pieces(str(loaded.folder), loaded.device.type, request, options, folder, missing)
    else:
        computed = _compute_here(loaded, reader, request, options.batch_size, folder, missing)
    found = [computed[piece] if piece in computed else _read_piece(_location(folder, *piece)) for piece in pieces]
    return _assemble(found, request.level_count)


def _compute_here(
    loaded: LoadedModel,
    reader: ShardReader,
    request: EmbedRequest,
    batch_size: int,
    folder: str,
    pieces: list[tuple[int, int]],
) -> dict[tuple[int, int], Piece]:
    """Compute ``pieces`` in this process; one is saved, which waits for the disk, while the next is computed."""
    computed = {}
    progress = Progress(f"embedding split {request.split!r}", sum(stop - start for start, stop in pieces))
    with ThreadPoolExecutor(1) as saver:
        saving: Future[None] | None = None
        for bounds, piece in compute_pieces(loaded, reader, request, batch_size, pieces, progress):
            computed[bounds] = piece
            if saving is not None:
                saving.result()  # a full disk ends the work at the next piece, not at the last
            saving = saver.submit(save_piece, folder, bounds, piece)
        if saving is not None:
            saving.result()
    return computed


def compute_pieces(
    loaded: LoadedModel,
    reader: ShardReader,
    request: EmbedRequest,
    batch_size: int,
    pieces: list[tuple[int, int]],
    progress: Progress | None = None,
) -> Iterator[tuple[tuple[int, int], Piece]]:
    """The pieces in order, each with its rows [start, stop) of the embedded ones; the next one's are read meanwhile."""
    size = examples_a_read(reader, batch_size)
    chosen = spread(request.count, len(reader))
    reads = [(bounds, rows) for bounds in pieces for rows in spans(bounds[1], size, bounds[0])]

    def load(start: int, stop: int) -> tuple[Batch, dict[str, torch.Tensor]]:
        batch = reader.read(chosen[start:stop])
        return batch, loaded.normalise(batch.arrays)

    parts: list[Piece] = []
    for (bounds, rows), (batch, inputs) in zip(reads, read_ahead(load, [rows for _, rows in reads]), strict=True):
        parts.append(embed_rows(loaded, batch, inputs, request, batch_size))
        if progress is not None:
            progress.advance(rows[1] - rows[0])
        if rows[1] == bounds[1]:
            yield bounds, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            parts = []


def save_piece(folder: str, bounds: tuple[int, int], piece: Piece) -> None:
    """Save the rows ``bounds`` under a name that says so."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **piece)
    storage.write_atomic(_location(folder, *bounds), stream.getvalue())


@torch.inference_mode()
def embed_rows(
    loaded: LoadedModel, batch: Batch, inputs: dict[str, torch.Tensor], request: EmbedRequest, batch_size: int
) -> Piece:
    """The rows of ``batch``, ``inputs`` being their normalised tokens, ``batch_size`` at a time:
    ``<part>_<level>`` float32 [B, width], and what is known about each example."""
    hidden = loaded.presence(batch.present, request.modalities) is not None
    pooled: dict[str, list[torch.Tensor]] = {}
    for first, last in spans(len(batch.sources), batch_size):
        some = {name: values[first:last] for name, values in inputs.items()}
        selection = loaded.presence(batch.part(first, last).present, request.modalities) if hidden else None
        for name, values in _pooled(loaded, some, selection, request.level_count).items():
            pooled.setdefault(name, []).append(values)
    # Fetched once for all batches, so that a GPU is not waited for after each.
    found = {name: torch.cat(values).cpu().numpy() for name, values in pooled.items()}
    return found | _described(loaded, batch)


def _pooled(
    loaded: LoadedModel, inputs: dict[str, torch.Tensor], selection: TokenSelection | None, level_count: int
) -> dict[str, torch.Tensor]:
    """``<part>_<level>`` [B, width] of one batch; its latents are freed on return, before the next batch's are made."""
    latents = _latents(loaded, inputs, selection, level_count)
    return {
        f"{part}_{level}": values
        for level in range(level_count)
        for part, values in pooled_parts(latents[level]).items()
    }


def _described(loaded: LoadedModel, batch: Batch) -> Piece:
    """What is known about each example."""
    return {f"present_{name}": np.asarray(batch.present[name], dtype=bool) for name in loaded.modality_names} | {
        "example_ids": np.asarray(batch.example_ids),
        "start_seconds": np.asarray(batch.start_seconds),
        "sources": np.array(batch.sources, dtype=np.str_),
        "labels": np.array([json.dumps(batch.labels)], dtype=np.str_),
    }


@torch.inference_mode()
def latents_of(
    loaded: LoadedModel,
    inputs: dict[str, torch.Tensor],
    present: Mapping[str, np.ndarray],
    level_count: int,
    modalities: tuple[str, ...] | None = None,
) -> list[torch.Tensor]:
    """The latents [B, G, N, D] of every block asked for; the decoder only runs when its levels are."""
    return _latents(loaded, inputs, loaded.presence(present, modalities), level_count)


def _latents(
    loaded: LoadedModel, inputs: dict[str, torch.Tensor], selection: TokenSelection | None, level_count: int
) -> list[torch.Tensor]:
    if level_count <= loaded.num_encoder_levels:
        return list(loaded.model.encode(inputs, selection))
    return list(loaded.model(inputs, selection).latents)


def _location(folder: str, start: int, stop: int) -> str:
    return storage.join(folder, f"rows_{start:09d}_{stop:09d}.npz")


def _read_piece(location: str) -> Piece:
    with np.load(io.BytesIO(storage.read_bytes(location)), allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def _assemble(pieces: list[Piece], level_count: int) -> Embeddings:
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return Embeddings(
        levels=[
            {part: joined[f"{part}_{level}"] for part in ("mean", "std", "groups")} for level in range(level_count)
        ],
        labels=[tuple(labels) for text in joined["labels"] for labels in json.loads(str(text))],
        sources=[str(source) for source in joined["sources"]],
        start_seconds=joined["start_seconds"],
        example_ids=joined["example_ids"],
        present={name.removeprefix("present_"): joined[name] for name in joined if name.startswith("present_")},
    )
