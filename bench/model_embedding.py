"""How much of the bare model's rate is left when a dataset is embedded: reading, checking, pooling and saving included.

    python -m bench.model_embedding --output bench/results/model_embedding.json

``bare`` calls ``model.encode`` on one normalised batch that is in memory, again and again. ``embedded`` is what
``hip evaluate`` does with a split: token shards from disk, normalised, encoded, pooled, written in pieces. Both see the
same number of examples in batches of the same size, in turns, and ``share`` is the ratio of their rates in one turn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.harness import HIGHER, NEITHER, Report, Row, arguments_parser, ratio_row, time_in_turns


def measure(report: Report, name: str, side: int, count: int, batch_size: int, repeats: int) -> None:
    """One model on ``count`` pictures of ``side`` x ``side`` pixels."""
    from hip_model.export import save_pretrained
    from hip_model.variants import build_model
    from pipeline.evaluate.embed import EmbedRequest, embed
    from pipeline.evaluate.loaded import load_model
    from pipeline.evaluate.options import EmbedOptions
    from pipeline.shards.manifest import Manifest
    from pipeline.shards.reader import ShardReader

    with tempfile.TemporaryDirectory(prefix="hip_bench_") as temporary:
        folder = Path(temporary)
        shards = write_pictures(folder / "shards", side, count)
        manifest = Manifest.load(shards)
        torch.manual_seed(0)
        built = build_model(name, [spec.to_modality() for spec in manifest.modalities])
        save_pretrained(built, folder / "model", {"data": manifest.data_card()})
        loaded, reader = load_model(folder / "model"), ShardReader(shards, split="train")
        request = EmbedRequest(shards, "train", count, loaded.num_encoder_levels)
        inputs = loaded.normalise(reader.read(np.arange(batch_size)).arrays)
        turns = iter(range(10**6))

        def bare() -> None:
            with torch.inference_mode():
                for _ in range(count // batch_size):
                    loaded.model.encode(inputs)
            if loaded.device.type == "cuda":
                torch.cuda.synchronize()

        def embedded() -> None:
            embed(loaded, reader, request, EmbedOptions(batch_size=batch_size), str(folder / f"cache{next(turns)}"))

        times = time_in_turns({"bare": bare, "embedded": embedded}, repeats)
    case = f"{name}, {side}x{side} pictures, batch {batch_size}"
    for kind, timing in times.items():
        report.add(Row(case, f"{kind}, wall", "examples/s", tuple(count / s for s in timing.wall_seconds), NEITHER))
        report.add(
            Row(case, f"{kind}, CPU", "ms/example", tuple(1000 * s / count for s in timing.cpu_seconds), NEITHER)
        )
    bare_time, all_time = times["bare"], times["embedded"]
    report.add(ratio_row(case, "share, wall", bare_time.wall_seconds, all_time.wall_seconds, HIGHER))
    report.add(ratio_row(case, "share, CPU", bare_time.cpu_seconds, all_time.cpu_seconds, HIGHER))


def write_pictures(folder: Path, side: int, count: int) -> str:
    """Token shards of noise; the rate does not depend on what is in them."""
    from pipeline.shards.manifest import Manifest
    from pipeline.shards.schema import ExampleRow, ModalitySpec
    from pipeline.shards.writer import ShardWriter

    spec = ModalitySpec("image", (side, side), 3, "uint8")
    draw = np.random.default_rng(0)
    with ShardWriter(str(folder), "train-00000", [spec]) as writer:
        for index in range(count):
            pixels = draw.integers(0, 255, (spec.num_tokens, 3)).astype(spec.dtype)
            writer.add(ExampleRow(index.to_bytes(16, "little"), str(index), 0.0, (), {"image": pixels}))
        record = writer.close()
    Manifest((spec,), (record,), lineage={"recipe": {}}).write(str(folder))
    return str(folder)


def main() -> None:
    """Two small models, where overhead shows most, and a published one."""
    arguments = arguments_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    from pipeline.host_memory import keep_freed_memory

    keep_freed_memory()  # as hip evaluate does; for both
    report = Report("model_embedding")
    count = 64 if arguments.quick else 256
    measure(report, "hip_nano", 32, 16 * count, 32, arguments.repeats)
    measure(report, "hip_micro", 64, 4 * count, 32, arguments.repeats)
    measure(report, "hip_mini", 64, count // 4, 32, arguments.repeats)
    report.note("One torch thread; batches are read ahead in a second thread, so wall time can use a second core.")
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
