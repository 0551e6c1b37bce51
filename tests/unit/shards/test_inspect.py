"""``hip inspect``: text, JSON and HTML show what is there, and text from the data can do no harm."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hip_model.ordering import flatten, token_order
from pipeline.errors import DataError, UserError
from pipeline.shards.inspect import inspect_dataset
from pipeline.shards.manifest import Manifest
from pipeline.shards.options import InspectOptions
from pipeline.shards.pictures import picture
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

SPECS = (
    ModalitySpec("video", (2, 8, 8), 3, "uint8", "hilbert", {"clip_seconds": 2.0}),
    ModalitySpec("audio", (100,), 1, "int16", sampling={"sample_rate": 50, "clip_seconds": 2.0}),
    ModalitySpec("image", (6, 6), 3, "uint8"),
    ModalitySpec("points", (40,), 3, "float32", "kd"),
)
HOSTILE = "<script>alert(1)</script>\x1b[2J.mp4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight examples whose names, labels and quarantine try to break out of the report."""
    path = tmp_path_factory.mktemp("inspect")
    random = np.random.default_rng(0)
    with ShardWriter(str(path), "train-00000", SPECS) as writer:
        for index in range(8):
            arrays = {
                "video": random.integers(0, 256, (128, 3), dtype=np.uint8),
                "audio": None if index < 3 else random.integers(-99, 99, (100, 1), dtype=np.int16),
                "image": random.integers(0, 256, (36, 3), dtype=np.uint8),
                "points": random.normal(size=(40, 3)).astype(np.float32),
            }
            writer.add(ExampleRow(random.bytes(16), HOSTILE, 2.0 * index, (0,), arrays))
        record = writer.close()
    lineage = {"class_examples": {"<b>cat": {"train": 8}}, "recipe": {"clip_seconds": 2.0}}
    Manifest(SPECS, (record,), ("<b>cat",), lineage, {"source": "/media"}).write(str(path))
    rows = [{"path": HOSTILE, "reason": "truncated", "detail": "moov <i>missing", "bytes": 1500}] * 2
    pq.write_table(pa.Table.from_pylist(rows), path / "quarantine.parquet")
    return str(path)


def test_text_has_counts_statistics_and_reasons(folder: str) -> None:
    report = inspect_dataset(InspectOptions(folder)).report
    assert "examples     8 in 1 shards" in report
    assert "video: 128 tokens (2 x 8 x 8) of 3 channels, uint8, hilbert order, 384 B an example" in report
    assert "present in   5 examples (10 seconds); missing in 3" in report
    assert re.search(r"channel 2 +mean +1\d\d\.\d+ +std", report)
    assert "quarantine: 2 files" in report
    assert "2  truncated" in report
    assert "<b>cat" in report
    assert "\x1b" not in report
    assert r"\x1b[2J" in report


def test_a_quarantine_without_its_columns_is_named_as_damaged(folder: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    pq.write_table(pa.table({"path": ["a.mp4"]}), damaged / "quarantine.parquet")
    with pytest.raises(DataError, match=r"quarantine\.parquet is damaged .* run hip preprocess again"):
        inspect_dataset(InspectOptions(str(damaged)))


def test_json_is_complete_and_equals_the_manifest(folder: str) -> None:
    values = json.loads(inspect_dataset(InspectOptions(folder, format="json", verify=True)).report)
    manifest = Manifest.load(folder)
    assert values["fingerprint"] == manifest.fingerprint
    assert values["splits"] == {"train": {"examples": 8, "shards": 1, "bytes": manifest.shards[0].bytes}}
    audio = next(modality for modality in values["modalities"] if modality["name"] == "audio")
    assert (audio["examples"], audio["missing"], audio["duration_seconds"]) == (5, 3, 10.0)
    assert audio["statistics"]["mean"] == list(manifest.statistics()["audio"].mean)
    assert values["quarantine"]["reasons"] == {"truncated": 2}
    assert values["verified"] == {"shards": 1, "bytes": manifest.shards[0].bytes, "damaged": []}


def test_html_is_self_contained_and_escapes_everything(folder: str, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    inspect_dataset(InspectOptions(folder, format="html", output=str(output), samples=4))
    page = output.read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 4 * 4 - 2 + 4  # four modalities of four examples, two without sound; four histograms
    for content in pictures:
        Image.open(io.BytesIO(base64.b64decode(content))).verify()
    assert page.index("Quarantine: 2 files") < page.index("truncated")


def test_frames_are_shown_in_raster_order_whatever_the_token_order() -> None:
    spec = SPECS[0]
    frames = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    tokens = flatten(frames, token_order("hilbert", (2, 8, 8)))
    shown = np.asarray(Image.open(io.BytesIO(picture(spec, tokens))))
    assert shown.shape == (128, 256, 3)
    assert np.array_equal(shown[8::16, 8::16], np.concatenate([frames[0], frames[1]], axis=1))


def test_damage_is_shown_and_then_raised(folder: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("manifest.json", "train-00000.arrow"):
        (broken / name).write_bytes((Path(folder) / name).read_bytes())
    content = bytearray((broken / "train-00000.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "train-00000.arrow").write_bytes(content)
    inspection = inspect_dataset(InspectOptions(str(broken), verify=True))
    assert "1 damaged" in inspection.report
    with pytest.raises(DataError, match=r"1 damaged shards: train-00000\.arrow\. Rebuild this shard alone: delete"):
        inspection.check()
    page = inspect_dataset(InspectOptions(str(broken), "html", str(tmp_path / "x.html"), verify=True)).report
    assert '<p class="bad">train-00000.arrow' in page


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match=r"format='htm' is unknown; did you mean 'html'"):
        InspectOptions("x", format="htm")
    with pytest.raises(UserError, match=r"format=html needs a file"):
        InspectOptions("x", format="html")


@pytest.mark.parametrize("kind", ["text", "json", "html"])
def test_a_dataset_without_examples_can_be_shown(tmp_path: Path, kind: str) -> None:
    Manifest(SPECS, ()).write(str(tmp_path))
    report = inspect_dataset(InspectOptions(str(tmp_path), kind, str(tmp_path / "report"))).report
    assert "hilbert" in report
    assert (tmp_path / "report").read_text() == report
