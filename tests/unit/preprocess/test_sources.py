"""Folders, lists and tables name the right files, labels, segments and splits."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.preprocess.identify import identify
from pipeline.preprocess.limits import LimitsOptions
from pipeline.preprocess.listing import Source
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.plan import Plan, extend_plan, load_plan
from pipeline.preprocess.recipe import AudioRecipe, TokenRecipe
from pipeline.preprocess.sources import list_sources

RECIPE = TokenRecipe(audio=AudioRecipe(8000))


def found(source: Path | str, kind: str = "auto", media_root: str | None = None) -> list[Source]:
    return list_sources(PreprocessOptions(str(source), "/out", RECIPE, source_kind=kind, media_root=media_root))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 3)


def test_plain_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.wav", "notes.txt", ".hidden.mp4", ".git/x.mp4")
    sources = found(tmp_path)
    assert [source.name for source in sources] == ["a.wav", "b.mp4", "notes.txt"]
    assert all(source.labels == () and source.bytes == 3 for source in sources)
    assert Path(sources[0].location) == tmp_path / "a.wav"


def test_locations_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "what? a folder/a.wav")
    monkeypatch.chdir(tmp_path)
    (source,) = found("what? a folder")
    assert source.location == str(tmp_path / "what? a folder/a.wav")


def test_file_uri_is_the_same_as_the_path(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.wav")
    assert [source.name for source in found(f"file://{tmp_path}")] == ["x/a.wav"]


def test_class_folders_are_recognised(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.wav", "cat/1.wav", "cat/deep/2.wav", "readme.md")
    labels = {source.name: source.labels for source in found(tmp_path)}
    assert labels == {"dog/1.wav": ("dog",), "cat/1.wav": ("cat",), "cat/deep/2.wav": ("deep",), "readme.md": ()}
    assert all(source.labels == () for source in found(tmp_path, "folder"))


def test_modelnet_tree_states_classes_and_splits(tmp_path: Path) -> None:
    touch(tmp_path, "chair/train/chair_1.off", "chair/test/chair_2.off", "desk/train/desk_1.off")
    assert [(source.labels, source.split) for source in found(tmp_path)] == [
        (("chair",), "validation"),
        (("chair",), "train"),
        (("desk",), "train"),
    ]


def test_imagenet_tree_with_split_folders_on_top(tmp_path: Path) -> None:
    touch(tmp_path, "train/n01/1.jpg", "val/n02/2.jpg")
    assert [(source.labels, source.split) for source in found(tmp_path)] == [
        (("n01",), "train"),
        (("n02",), "validation"),
    ]


def test_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    assert [source.name for source in found(tmp_path / "a.mp4")] == ["a.mp4"]


def test_list_file(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.wav", "far/b.wav")
    (tmp_path / "in/files.txt").write_text(f"a.wav\n\n{tmp_path}/far/b.wav\nmissing.wav\n")
    sources = {source.name: source.bytes for source in found(tmp_path / "in/files.txt")}
    assert sources == {"a.wav": 3, f"{tmp_path}/far/b.wav": 3, "missing.wav": -1}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "media/a.mp4", "media/b.mp4")
    table = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        table.write_text("path,start,end,labels,split\na.mp4,1.5,4,dog;cat,train\nb.mp4,,,,test\n")
    else:
        columns = {
            "path": ["a.mp4", "b.mp4"],
            "start": [1.5, None],
            "end": [4.0, None],
            "labels": [["dog", "cat"], []],
            "split": ["train", "test"],
        }
        pq.write_table(pa.table(columns), table)
    first, second = found(table, media_root=str(tmp_path / "media"))
    assert (first.labels, first.segment, first.split) == (("dog", "cat"), (1.5, 4.0), "train")
    assert (second.labels, second.segment, second.split) == ((), None, "validation")


def test_audioset_csv(tmp_path: Path) -> None:
    touch(tmp_path, "--aE2O5G5WE.mp4", "Y-abc_30.000_40.000.wav")
    (tmp_path / "eval.csv").write_text(
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2, num_segs=2\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--aE2O5G5WE, 0.000, 10.000, "/m/03fwl,/m/04rlf"\n'
        '-abc, 30.000, 40.000, "/m/09x0r"\n'
        'gone, 1.000, 2.000, "/m/1"\n'
    )
    sources = {source.name: source for source in found(tmp_path / "eval.csv")}
    assert sources["--aE2O5G5WE.mp4"].labels == ("/m/03fwl", "/m/04rlf")
    assert sources["--aE2O5G5WE.mp4"].segment == (0.0, 10.0)
    assert sources["Y-abc_30.000_40.000.wav"].segment is None
    assert sources["gone"].bytes == -1


def test_kinetics_csv(tmp_path: Path) -> None:
    touch(tmp_path, "k/abseiling/zzz_000017_000027.mp4", "k/abseiling/yyy.mp4")
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nabseiling,zzz,17,27,train\nabseiling,yyy,5,15,validate\n"
    )
    whole, cut = found(tmp_path / "train.csv", media_root=str(tmp_path / "k"))
    assert (whole.segment, whole.split, whole.labels) == ((5.0, 15.0), "validation", ("abseiling",))
    assert (cut.segment, cut.split) == (None, "train")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "file,start\na,1\n", "column 'path'"),
        ("t.csv", "path,start,end\na.wav,one,2\n", "not seconds"),
        ("t.csv", "path,start,end\na.wav,5,2\n", "holds nothing"),
        ("t.csv", "path,labels\na.wav,[broken\n", "labels"),
        ("t.parquet", "not parquet", "not a Parquet file"),
        ("t.xyz", "?", "neither media"),
        ("t.csv", "# YTID, start\nabc, 1\n", "AudioSet row"),
        ("t.csv", "# YTID, start\nabc, one, 2, x\n", "AudioSet row.*are not seconds"),
        ("t.csv", "# YTID, start\nabc, 3, inf, x\n", "AudioSet row.*holds nothing"),
        ("t.csv", "# YTID, start\nabc, nan, 2, x\n", "AudioSet row.*holds nothing"),
        ("t.csv", "# YTID, start\nabc, 7, 2, x\n", "AudioSet row.*holds nothing"),
        ("t.csv", "label,youtube_id,time_start,time_end\nrun,a,1,\n", "Kinetics row.*starts and ends"),
        ("t.csv", "label,youtube_id,time_start,time_end\nrun,a,-1,3\n", "Kinetics row.*holds nothing"),
        ("t.csv", "label,youtube_id,time_start,time_end\nrun,,1,3\n", "Kinetics row.*names no video"),
        ("t.csv", "# YTID, start\n, 1, 3, x\n", "AudioSet row.*names no video"),
        ("t.csv", "path,start,end\na.wav,0,inf\n", "row of 'a.wav'.*leave end empty"),
        ("t.csv", "path,split\na.wav,train\nb.wav,holdout\n", "row of 'b.wav': split='holdout' is not known"),
    ],
)
def test_mistakes_in_tables_are_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        found(tmp_path / name)


def test_a_kinetics_table_needs_its_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label,id,time_start,time_end\nrun,a,1,3\n")
    with pytest.raises(UserError, match=r"Kinetics row.*names no video"):
        found(tmp_path / "t.csv", "kinetics")


def test_a_table_may_hold_any_kind_of_value(tmp_path: Path) -> None:
    content = pa.table({"path": ["a.wav"], "start": [datetime(2026, 1, 1)], "end": [datetime(2026, 1, 2)]})
    pq.write_table(content, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="are not seconds"):
        found(tmp_path / "t.parquet")


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        found(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is empty"):
        found(tmp_path)
    with pytest.raises(UserError, match="did you mean 'kinetics'"):
        found(tmp_path, "kinetic")
    with pytest.raises(UserError, match="needs a file"):
        found(tmp_path, "table")


def test_links_go_nowhere_in_circles_and_are_not_forgotten(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.wav", "elsewhere/b.wav")
    for name, target in (("circle", "."), ("more", "../elsewhere"), ("lost.wav", "/nonexistent")):
        (tmp_path / "in" / name).symlink_to(target)
    sources = {source.name: source for source in found(tmp_path / "in", "folder")}
    assert {name: source.bytes for name, source in sources.items()} == {"a.wav": 3, "more/b.wav": 3, "lost.wav": -1}
    identity = identify(sources["lost.wav"], LimitsOptions())
    assert (identity.reason, "broken link" in identity.detail) == ("missing_file", True)


def test_a_name_that_is_no_text_costs_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "good.wav", "with space #1?.wav")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")).write_bytes(b"abc")
    sources = found(tmp_path)
    assert [source.name for source in sources] == ["\\xff.wav", "good.wav", "with space #1?.wav"]
    assert identify(sources[0], LimitsOptions()).reason == "unreadable"
    plan = extend_plan(Plan(RECIPE, 0.0), [(source, identify(source, LimitsOptions())) for source in sources], 1e6)
    plan.save(str(tmp_path / "out"))
    assert load_plan(str(tmp_path / "out")) == plan


@pytest.mark.parametrize("name", ["list.txt", "table.csv"])
def test_lists_in_another_encoding_are_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("path\nbl\u00fcte.wav\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        found(tmp_path / name)


def test_a_dataset_inside_its_source_is_no_source(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "tokens/train-00000.arrow", "tokens2/b.wav")
    options = PreprocessOptions(str(tmp_path), str(tmp_path / "tokens"), RECIPE)
    assert [source.name for source in list_sources(options)] == ["a.wav", "tokens2/b.wav"]
    with pytest.raises(UserError, match="is the source itself"):
        list_sources(PreprocessOptions(str(tmp_path), f"{tmp_path}/", RECIPE))
