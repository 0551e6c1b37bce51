"""Datasets as something to search: part of what the search is, and checked before a trial is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from training_data import IMAGE, SOUND, write_dataset

from pipeline.errors import UserError
from pipeline.shards.manifest import Manifest
from pipeline.train.options import BatchOptions, DurationOptions, ModelOptions
from pipeline.tune.options import SearchOptions, TuneOptions
from pipeline.tune.prepared import PreparedSearch, prepare


def prepared(folder: Path, *places: str) -> PreparedSearch:
    options = TuneOptions(
        shards=places[0],
        storage=str(folder / "runs"),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8),
        duration=DurationOptions(epochs=1),
        search=SearchOptions(name="orders", budget="none", algorithm="grid", options={"shards": list(places)}),
    )
    return prepare(options, Manifest.load(options.shards))


def test_each_dataset_has_its_own_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "short", train=16)
    write_dataset(tmp_path / "long", train=48)
    search = prepared(tmp_path, "short", "long")
    assert search.space.domains["shards"].grid() == [0, 1]
    factory = search.factory()
    candidates = [factory.make(index, {"shards": index}) for index in range(2)]
    assert [search.total_steps(candidate) for candidate in candidates] == [2, 6]
    assert candidates[1].training_settings["shards"] == str(tmp_path / "long"), "trials run in folders of their own"


def test_a_dataset_that_was_written_anew_is_another_search(tmp_path: Path) -> None:
    own, other = write_dataset(tmp_path / "own"), write_dataset(tmp_path / "other", train=16)
    prepared(tmp_path, own, other).claim()
    assert prepared(tmp_path, own, other).claim()
    for file in (tmp_path / "other").rglob("*"):
        if file.is_file():
            file.unlink()
    write_dataset(tmp_path / "other", train=24)
    with pytest.raises(UserError, match="fingerprint"):
        prepared(tmp_path, own, other).claim()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    own = write_dataset(tmp_path / "own", specs=(IMAGE, SOUND))
    pictures = write_dataset(tmp_path / "pictures", specs=(IMAGE,))
    with pytest.raises(UserError, match="pictures has the inputs"):
        prepared(tmp_path, own, pictures)
    held_out = write_dataset(tmp_path / "held_out", train=0)
    with pytest.raises(UserError, match="held_out has no examples in split 'train'"):
        prepared(tmp_path, own, held_out)
    with pytest.raises(UserError, match="nowhere"):
        prepared(tmp_path, own, str(tmp_path / "nowhere"))


def test_two_aims_and_one_cost_contradict_each_other() -> None:
    with pytest.raises(
        UserError, match=r"search\.multi_objective=true .* search\.budget=flops .* set search\.budget=none"
    ):
        SearchOptions(dials={"depth": [1, 2]}, multi_objective=True)
    search = SearchOptions(dials={"depth": [1, 2]}, multi_objective=True, budget="none")
    assert replace(search, multi_objective=False).budget == "none"
