"""The search space and its options: what varies is checked where it is written down."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from hip_model.geometry import GeometryDials
from pipeline.config import load_options
from pipeline.errors import UserError
from pipeline.train.options import BatchOptions, DurationOptions, ModelOptions, PretrainOptions
from pipeline.tune.options import SearchOptions, TuneOptions
from pipeline.tune.space import Choice, Range, build_space, dials_of, with_option

BASE = PretrainOptions(shards="clips", model=ModelOptions("hip_nano"), duration=DurationOptions(steps=10))


def test_ranges_lists_and_fixed_dials() -> None:
    search = SearchOptions(
        dials={"depth": [1, 2], "decoder_width": {"low": 0.25, "high": 1.0}, "first_groups": 4},
        options={
            "optim.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "mask.policy": ["tube", "independent"],
        },
    )
    space = build_space(search, BASE)
    assert space.domains == {
        "dials.depth": Choice((1, 2)),
        "dials.decoder_width": Range(0.25, 1.0),
        "optim.learning_rate": Range(1e-4, 1e-2, log=True),
        "mask.policy": Choice(("tube", "independent")),
    }
    assert space.fixed_dials == {"first_groups": 4}
    dials = dials_of(search, space, {"dials.depth": 2, "dials.decoder_width": 0.5, "optim.learning_rate": 1e-3})
    assert dials == GeometryDials(depth=2, decoder_width=0.5, first_groups=4)


def test_grids_enumerate_steps_and_refuse_continua() -> None:
    assert Range(1, 7, step=2).grid() == [1, 3, 5, 7]
    assert Range(0.1, 0.5, step=0.2).grid() == pytest.approx([0.1, 0.3, 0.5])
    assert [Choice(("a", "b")).value(draw) for draw in Choice(("a", "b")).grid()] == ["a", "b"]
    with pytest.raises(UserError, match="a grid needs values"):
        Range(0.1, 0.5).grid()


def examples() -> list[str]:
    """The commands in the head of ``conf/tune.yaml``."""
    lines = (Path(__file__).parents[3] / "conf" / "tune.yaml").read_text().splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#   hip tune")]


@pytest.mark.parametrize("command", examples())
def test_the_examples_describe_searches(command: str) -> None:
    options = load_options(TuneOptions, "tune", shlex.split(command)[2:])
    space = build_space(options.search, options)
    assert space.domains
    if options.search.algorithm == "grid":
        assert space.grid_size() >= 2


def test_a_continuous_range_in_a_grid_is_named() -> None:
    search = SearchOptions(dials={"depth": [1, 2], "decoder_width": {"low": 0.25, "high": 1.0}})
    with pytest.raises(UserError, match=r"search.algorithm=grid, dials.decoder_width: a grid needs values"):
        build_space(search, BASE).grid_size()


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"dials": {"dept": [1]}}, r"no dial 'dept'; did you mean 'depth'"),
        ({"dials": {"depth": [1, 99]}}, r"search.dials.depth: dial depth=99 .* nearest is 8"),
        ({"dials": {"core": ["decoder"]}}, "last_encoder"),
        ({"dials": {"depth": []}}, "empty list"),
        ({"dials": {"depth": {"low": 1}}}, "needs low and high"),
        ({"dials": {"depth": {"low": 1, "high": 3, "lg": True}}}, "'lg'"),
        ({"dials": {"decoder_width": {"low": 1.0, "high": 0.5}}}, "no range"),
        ({"dials": {"depth": {"low": "a", "high": 2}}}, r"depth: low='a' is no number"),
        ({"dials": {"depth": {"low": 1, "high": 3, "step": -1}}}, r"depth: step=-1 must be above 0"),
        ({"dials": {"depth": {"low": 1, "high": 3, "step": 0}}}, r"depth: step=0 must be above 0"),
        ({"options": {"optim.learning_rat": [1.0]}}, "did you mean 'learning_rate'"),
        ({"options": {"mask.ratio": {"low": 0.5, "high": 1.5}}}, r"mask.ratio=1.5 is out of range"),
        ({"options": {"mask": {"ratio": "half"}}}, r"search.options.mask.ratio=half: expected float, got str"),
        ({"options": {"batch.global_size": [8, 8.5]}}, r"search.options.batch.global_size=8.5: expected int"),
        ({"options": {"batch.global_size": {"low": 4.0, "high": 8.0}}}, r"global_size=5.4\d*: expected int"),
        ({"options": {"duration.steps": ["long"]}}, r"search.options.duration.steps=long: expected int"),
        ({"dials": {"depth": {"low": 1, "high": 3, "step": 0.5}}}, "depth=1.5 must be a whole number"),
        ({"options": {"optim": [1]}}, "is a group"),
        ({"options": {"seed.low": [1]}}, "is a value"),
        ({"options": {"storage": ["a", "b"]}}, "same for all trials"),
        ({"variants": ["hip_17"]}, "did you mean 'hip_16'"),
        ({"variants": [3]}, "neither a model name"),
        ({"variants": [{"depth": 0}]}, "nearest is 1"),
    ],
)
def test_bad_spaces_are_named(search: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_space(SearchOptions(**search), BASE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": "flop"}, "did you mean 'flops'"),
        ({"scheduler": "hyperband"}, "valid: asha"),
        ({"algorithm": "grit"}, "did you mean 'grid'"),
        ({"budget_target": -1.0}, "must be positive"),
        ({"budget": "none", "budget_target": 1e6}, "search.budget=none"),
        ({"variants": ["hip_16"]}, "both given"),
        ({"dials": {}}, "nothing to search"),
        ({"scheduler": "pbt"}, "geometry cannot follow"),
        ({"name": "a/b"}, "plain folder name"),
        ({"trials": 0}, "too small"),
    ],
)
def test_bad_search_options_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SearchOptions(**{"dials": {"depth": [1]}, **values})


def test_options_are_set_by_dotted_key_and_checked() -> None:
    assert with_option(BASE, "optim.weight_decay", 0.2).optim.weight_decay == 0.2
    assert with_option(BASE, "mask.per_modality.audio", 0.5).mask.per_modality == {"audio": 0.5}
    assert with_option(BASE, "shards", "other").shards == "other"
    assert with_option(BASE, "schedule.milestone_shares", [0.5, 1]).schedule.milestone_shares == (0.5, 1.0)
    assert with_option(BASE, "mask.per_modality", {"audio": 1}).mask.per_modality == {"audio": 1.0}
    assert with_option(BASE, "duration.epochs", 3).duration == DurationOptions(epochs=3)
    with pytest.raises(UserError, match="too small"):
        with_option(BASE, "batch.global_size", 0)


def test_a_search_takes_every_key_of_pretraining() -> None:
    options = TuneOptions(**{**BASE.__dict__, "batch": BatchOptions(8), "search": SearchOptions(dials={"depth": [1]})})
    assert options.batch.global_size == 8
    assert replace(options, seed=3).seed == 3


def test_population_based_training_draws_whole_numbers_from_a_whole_range() -> None:
    drawn = {Range(2, 4).mutation().sample() for _ in range(60)}
    assert drawn == {2, 3, 4}
    assert all(isinstance(Range(0.5, 1.0, log=log).mutation().sample(), float) for log in (True, False))
