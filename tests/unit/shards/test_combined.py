"""Several datasets read as one: every row as its own dataset has it, and nothing that has changed since."""

import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import AUDIO, IMAGE, example, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, UserError
from pipeline.preprocess.combine import CombineOptions, run_combine
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.recipe import AudioRecipe, ImageRecipe, PointsRecipe, TokenRecipe, VideoRecipe
from pipeline.preprocess.run import run_preprocess
from pipeline.shards.combined import draw_weights
from pipeline.shards.inspect import inspect_dataset
from pipeline.shards.manifest import Manifest
from pipeline.shards.options import InspectOptions
from pipeline.shards.reader import ShardReader
from pipeline.shards.remote import CacheOptions
from pipeline.shards.verify import verify_dataset


def some_rows(counts: dict[str, int], without: str | None = None, first: int = 0):
    rows = {split: [example(first + i, split) for i in range(count)] for split, count in counts.items()}
    for row in (row for split in rows.values() for row in split):
        if without is not None:
            del row.arrays[without]
    return rows


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[str, str, str]:
    """Pictures alone, sound alone under other label numbers, and both of them, without a validation split."""
    folder = tmp_path_factory.mktemp("members")
    pictures = write_dataset(folder / "pictures", some_rows({"train": 21, "validation": 6}, "audio"), (IMAGE,))
    sounds = write_dataset(
        folder / "sounds", some_rows({"train": 10, "validation": 5}, "image", 100), (AUDIO,), ("blue", "green", "pink")
    )
    both = write_dataset(folder / "both", some_rows({"train": 7}, first=200))
    return pictures, sounds, both


@pytest.fixture(scope="module")
def combined(places, tmp_path_factory) -> str:
    place = str(tmp_path_factory.mktemp("all") / "tokens")
    run_combine(CombineOptions(places, place))
    return place


@pytest.mark.parametrize("split", ["train", "validation", None])
@settings(max_examples=25, deadline=None)
@given(draw=st.data())
def test_every_row_is_its_own_datasets_row(places, combined, split, draw):
    reader = ShardReader(combined, split)
    members = [ShardReader(place, split) for place in places if split in (None, *Manifest.load(place).splits)]
    wanted = np.array(draw.draw(st.lists(st.integers(0, len(reader) - 1), max_size=30)), np.int64)
    found = reader.read(wanted)
    starts = np.cumsum([0, *map(len, members)])
    assert len(reader) == starts[-1]
    for slot, index in enumerate(wanted):
        member = int(np.searchsorted(starts, index, side="right")) - 1
        row = members[member].read(np.array([index - starts[member]]))
        for name in ("image", "audio"):
            there = name in row.arrays and row.present[name][0]
            assert found.present[name][slot] == there
            np.testing.assert_array_equal(found.arrays[name][slot], row.arrays[name][0] if there else 0)
        assert found.example_ids[slot] == row.example_ids[0]
        assert (found.sources[slot], found.start_seconds[slot]) == (row.sources[0], row.start_seconds[0])
        names = members[member].manifest.label_names
        assert [reader.manifest.label_names[label] for label in found.labels[slot]] == [
            names[label] for label in row.labels[0]
        ]


def test_what_it_is_made_of_is_told(places, combined):
    manifest = Manifest.load(combined)
    assert [spec.name for spec in manifest.modalities] == ["image", "audio"]
    assert manifest.splits == {"train": 38, "validation": 11}
    assert manifest.label_names == ("red", "green", "blue", "pink")
    assert manifest.statistics()["audio"].examples == 10 + 5 + 7
    text = inspect_dataset(InspectOptions(combined, verify=True)).report
    assert f"of {places[1]}: 15 examples, each once an epoch" in text
    assert "verified: 5 shards" in text
    assert all(check.sound for check in verify_dataset(combined))


def test_remote_members_are_fetched_and_kept(places, tmp_path):
    remote = f"memory://bucket-{uuid.uuid4().hex[:8]}"
    far = write_dataset(f"{remote}/sounds", some_rows({"train": 10}, "image", 100), (AUDIO,))
    run_combine(CombineOptions((places[0], far), f"{remote}/all"))
    with_cache = ShardReader(f"{remote}/all", "train", cache=CacheOptions(str(tmp_path)))
    rows = with_cache.read(np.arange(31)[::-1])
    assert rows.present["audio"].tolist() == [True] * 10 + [False] * 21
    np.testing.assert_array_equal(rows.arrays["audio"][0], example(109, "train").arrays["audio"])
    assert with_cache.cache_examples is not None
    assert [path.suffix for path in tmp_path.rglob("*.*") if path.is_file()] == [".batch"]
    assert ShardReader(places[0]).cache_examples is None


def test_the_fingerprint_stands_for_the_data_wherever_they_are(places, combined, tmp_path):
    moved = [shutil.copytree(place, tmp_path / Path(place).name) for place in places]
    again = run_combine(CombineOptions(tuple(map(str, moved)), str(tmp_path / "all")))
    assert again.fingerprint == Manifest.load(combined).fingerprint
    shares = run_combine(CombineOptions(places, str(tmp_path / "shares"), (1, 2, 1)))
    assert shares.fingerprint != again.fingerprint
    assert Manifest.load(str(tmp_path / "shares")).members == shares.members
    assert [member.share for member in shares.members] == [0.25, 0.5, 0.25]


def test_a_dataset_that_has_changed_is_refused_until_it_is_combined_again(tmp_path):
    rows = some_rows({"train": 4})
    one, two = (write_dataset(tmp_path / name, rows) for name in ("one", "two"))
    options = CombineOptions((one, two), str(tmp_path / "all"))
    run_combine(options)
    write_dataset(two, some_rows({"train": 5}))
    with pytest.raises(
        UserError, match=r"two is not the dataset that .*all/manifest.json combined: fingerprint sha256:"
    ):
        ShardReader(options.shards)
    run_combine(options)
    assert len(ShardReader(options.shards)) == 9
    shutil.rmtree(two)
    with pytest.raises(UserError, match="two is not a finished token dataset"):
        ShardReader(options.shards)


def test_damage_is_named_with_the_dataset_that_has_it(tmp_path):
    one, two = (write_dataset(tmp_path / name, some_rows({"train": 6})) for name in ("one", "two"))
    run_combine(CombineOptions((one, two), str(tmp_path / "all")))
    shard = Path(two) / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    place = content.find(example(3, "train").arrays["image"].tobytes())
    content[place] ^= 255
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"1/train-00000.arrow, row 3.* delete {two}/train-00000.arrow"):
        ShardReader(str(tmp_path / "all")).read(np.arange(12))
    damaged = [check for check in verify_dataset(str(tmp_path / "all")) if not check.sound]
    assert [check.name for check in damaged] == ["1/train-00000.arrow"]
    assert f"delete {two}/train-00000.arrow" in damaged[0].remedy


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"format_version": 1, "members": [{"uri": "x"}], "lineage": {}}', "incomplete or damaged"),
        (b'{"format_version": 1, "members": 3, "lineage": {}}', "incomplete or damaged"),
        (b'{"format_version": 99, "members": [], "lineage": {}}', "format version 99"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, places, content, says):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises((DataError, UserError), match=says):
        Manifest.load(str(tmp_path))


def test_an_edited_manifest_is_refused(places, tmp_path):
    run_combine(CombineOptions(places, str(tmp_path), (1, 1, 2)))
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"share": 0.5', '"share": 0.6'))
    with pytest.raises(DataError, match="does not match its own fingerprint"):
        Manifest.load(str(tmp_path))


@pytest.mark.parametrize(
    ("datasets", "shares", "says"),
    [
        (("a",), None, r"datasets=\['a'\]: name two or more"),
        (("a", "./a"), None, "name two or more"),
        (("a", "b", "a"), None, r"names .*/a 2 times; give it a larger share instead"),
        (("a", "out"), None, "shares?=?.*out is one of the datasets|shards=out is one of the datasets"),
        (("a", "b"), (1.0,), "shares has 1 numbers for 2 datasets"),
        (("a", "b"), (1.0, 0.0), "shares: 0 must be above 0"),
        (("a", "b"), (1.0, float("nan")), "shares: nan must be above 0"),
        (("s3://key:secret@bucket/a", "b"), None, "credentials in its URI"),
    ],
)
def test_what_cannot_be_combined_is_refused(datasets, shares, says):
    with pytest.raises(UserError, match=says):
        CombineOptions(datasets, "out", shares)


def test_datasets_that_do_not_fit_are_refused(places, combined, tmp_path):
    finer = AUDIO.to_dict() | {"sampling": {"sample_rate": 16000}}
    other = write_dataset(tmp_path / "finer", some_rows({"validation": 3}, "image"), (type(AUDIO).from_dict(finer),))
    out = str(tmp_path / "out")
    with pytest.raises(
        UserError, match=r"sounds and .*finer both have 'audio', with sampling .*8000.* and .*16000.*preprocess one"
    ):
        run_combine(CombineOptions((places[1], other), out))
    with pytest.raises(UserError, match=r"is a combined dataset itself; name what it is made of: .*pictures"):
        run_combine(CombineOptions((places[0], combined), out))
    with pytest.raises(UserError, match="finer has no training examples to take a share of"):
        run_combine(CombineOptions((places[0], other), out, (1, 1)))
    with pytest.raises(UserError, match="holds a dataset with tokens of its own"):
        run_combine(CombineOptions((places[0], places[1]), places[2]))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_media_are_not_preprocessed_into_a_combined_dataset(combined, tmp_path):
    with pytest.raises(UserError, match=r"is a combined dataset; preprocess into another folder"):
        run_preprocess(PreprocessOptions(str(tmp_path), combined, TokenRecipe(image=ImageRecipe(8, 8))))
    assert Manifest.load(combined).members


def test_shares_are_of_the_whole_and_not_of_the_examples(places, tmp_path):
    run_combine(CombineOptions(places, str(tmp_path), (2, 1, 1)))
    weights = draw_weights(Manifest.load(str(tmp_path)), "train")
    assert weights is not None
    assert [part.sum() for part in np.split(weights, [21, 31])] == pytest.approx([0.5, 0.25, 0.25])
    assert draw_weights(Manifest.load(places[0]), "train") is None


CLIPS = TokenRecipe(clip_seconds=2.0, video=VideoRecipe(2, 8, 8), token_order="morton")


@pytest.mark.parametrize(
    ("recipes", "merged"),
    [
        ((CLIPS, TokenRecipe(clip_seconds=2.0, audio=AudioRecipe(32), token_order="morton")), True),
        ((TokenRecipe(points=PointsRecipe(16)), CLIPS), True),  # points have an order of their own, and no clips
        ((TokenRecipe(image=ImageRecipe(8, 8), token_order="morton"), CLIPS), True),
        ((TokenRecipe(image=ImageRecipe(8, 8)), CLIPS), False),
        ((CLIPS, TokenRecipe(clip_seconds=1.0, audio=AudioRecipe(32), token_order="morton")), False),
    ],
)
def test_one_recipe_reads_what_all_of_them_read_or_there_is_none(recipes, merged, tmp_path, caplog):
    for number, recipe in enumerate(recipes):
        Manifest(tuple(recipe.specs()), (), lineage={"recipe": recipe.to_dict()}).write(str(tmp_path / str(number)))
    manifest = run_combine(CombineOptions(tuple(str(tmp_path / str(n)) for n in range(2)), str(tmp_path / "all")))
    assert ("cannot be one" in caplog.text) != merged
    stored = manifest.data_card()["recipe"]
    if merged:
        by_name = {spec.name: spec for spec in TokenRecipe.from_dict(stored).specs()}
        assert by_name == {spec.name: spec for recipe in recipes for spec in recipe.specs()}
    else:
        assert stored == {}
