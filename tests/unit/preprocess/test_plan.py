"""The plan is a function of the files and the recipe, and only grows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, UserError
from pipeline.preprocess.identify import Identity
from pipeline.preprocess.listing import Source
from pipeline.preprocess.plan import Plan, check_same_recipe, extend_plan, known_identities, load_plan
from pipeline.preprocess.recipe import AudioRecipe, ImageRecipe, TokenRecipe

RECIPE = TokenRecipe(image=ImageRecipe(8, 8))
EMPTY = Plan(RECIPE, 0.25)
Found = list[tuple[Source, Identity]]


def files(numbers: list[int]) -> Found:
    """One file per number; the number decides the content."""
    return [
        (
            Source(f"class_{n % 3}/{n:05d}.png", f"/in/{n:05d}.png", 10 + n, 1, (f"class_{n % 3}",)),
            Identity(f"{n * 7919 % 65521:032x}"),
        )
        for n in numbers
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10_000), unique=True, max_size=120), st.randoms())
def test_order_of_listing_does_not_matter(numbers: list[int], shuffler: random.Random) -> None:
    found = files(numbers)
    plan = extend_plan(EMPTY, found, 2000.0)
    shuffler.shuffle(found)
    assert extend_plan(EMPTY, found, 2000.0) == plan
    assert extend_plan(plan, found, 2000.0) == plan
    planned = [source.name for members in plan.tasks().values() for source in members]
    assert sorted(planned) == sorted(source.name for source, _ in found)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10_000), unique=True, min_size=2, max_size=120), st.integers(1, 100))
def test_new_files_only_add_tasks(numbers: list[int], cut: int) -> None:
    before = extend_plan(EMPTY, files(numbers[:cut]), 2000.0)
    after = extend_plan(before, files(numbers), 2000.0)
    for name, members in before.tasks().items():
        assert after.tasks()[name] == members
    assert after.label_names[: len(before.label_names)] == before.label_names
    assert sum(map(len, after.tasks().values())) == len(numbers)


def test_files_that_disappeared_stay_in_the_plan() -> None:
    plan = extend_plan(EMPTY, files([1, 2, 3]), 2000.0)
    assert extend_plan(plan, files([2]), 2000.0).tasks() == plan.tasks()


def test_split_depends_on_content_alone() -> None:
    plan = extend_plan(EMPTY, files(list(range(2000))), 1e9)
    share = sum(source.split == "validation" for source in plan.sources) / 2000
    assert 0.2 < share < 0.3
    few = extend_plan(EMPTY, files(list(range(0, 2000, 10))), 1e9)
    splits = {source.content_hash: source.split for source in plan.sources}
    assert all(splits[source.content_hash] == source.split for source in few.sources)
    for members in plan.tasks().values():
        assert len({source.split for source in members}) == 1


def test_the_same_content_is_kept_once() -> None:
    twins = [(Source(name, f"/in/{name}", 5, 1), Identity("ab" * 16)) for name in ("b.png", "a.png", "c.png")]
    plan = extend_plan(EMPTY, twins, 1e9)
    assert [source.name for members in plan.tasks().values() for source in members] == ["a.png"]
    assert {source.name: source.duplicate_of for source in plan.sources if source.duplicate_of} == {
        "b.png": "a.png",
        "c.png": "a.png",
    }
    later = extend_plan(plan, [*twins, (Source("0.png", "/in/0.png", 5, 1), Identity("ab" * 16))], 1e9)
    assert later.tasks() == plan.tasks()


def test_segments_of_one_file_are_different_but_share_a_split() -> None:
    found = [
        (Source("a.mp4", "/in/a.mp4", 5, 1, (), (float(n), n + 1.0)), Identity("cd" * 16, 100.0)) for n in range(20)
    ]
    plan = extend_plan(Plan(TokenRecipe(audio=AudioRecipe(8000)), 0.5), found, 1e9)
    planned = [source for members in plan.tasks().values() for source in members]
    assert len(planned) == 20
    assert len({source.split for source in planned}) == 1


def test_a_file_already_cut_to_its_segment_is_used_whole() -> None:
    found = [(Source("a.mp4", "/in/a.mp4", 5, 1, (), (30.0, 40.0)), Identity("cd" * 16, 10.02))]
    (source,) = extend_plan(Plan(TokenRecipe(audio=AudioRecipe(8000)), 0.5), found, 1e9).sources
    assert source.segment is None


def test_stated_split_wins() -> None:
    found = [
        (Source(f"test/{n}.png", "/x", 5, 1, (), None, "validation"), identity)
        for n, (_, identity) in enumerate(files(list(range(50))))
    ]
    assert {source.split for source in extend_plan(EMPTY, found, 1e9).sources} == {"validation"}


def test_tasks_have_about_the_asked_size() -> None:
    plan = extend_plan(Plan(RECIPE, 0.0), files(list(range(1000))), 192 * 50.0)
    sizes = [len(members) for members in plan.tasks().values()]
    assert set(sizes[:-1]) == {50}


def test_small_sets_still_have_several_shards() -> None:
    plan = extend_plan(Plan(RECIPE, 0.0), files(list(range(80))), 512e6)
    assert len(plan.tasks()) == 8


def test_files_without_content_are_no_duplicates_and_no_task() -> None:
    found = [(Source(f"{n}.png", "/x", 0, 1), Identity(f"{n:032x}", 0.0, "empty_file", "0 bytes")) for n in range(3)]
    plan = extend_plan(EMPTY, found, 1e9)
    assert plan.tasks() == {}
    assert [source.reason for source in plan.sources] == ["empty_file"] * 3
    assert known_identities(plan) == {}


def test_saved_and_loaded(tmp_path: Path) -> None:
    plan = extend_plan(EMPTY, files(list(range(30))), 2000.0)
    assert load_plan(str(tmp_path)) is None
    plan.save(str(tmp_path))
    assert load_plan(str(tmp_path)) == plan
    first = (tmp_path / "plan.parquet").read_bytes()
    plan.save(str(tmp_path))
    assert (tmp_path / "plan.parquet").read_bytes() == first
    (tmp_path / "plan.parquet").write_bytes(first[:100])
    with pytest.raises(DataError, match="damaged"):
        load_plan(str(tmp_path))


def test_another_recipe_is_refused() -> None:
    with pytest.raises(UserError, match="image="):
        check_same_recipe(EMPTY, TokenRecipe(image=ImageRecipe(8, 9)), 0.25, "out")
    with pytest.raises(UserError, match=r"validation_fraction=0.25, this run says 0.1"):
        check_same_recipe(EMPTY, RECIPE, 0.1, "out")
