"""Candidates: solved to one cost, rejected with a reason, written down before they are trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from training_data import write_dataset

from hip_model.accounting import count_parameters, model_cost
from hip_model.config import HiPConfig
from hip_model.modality import Modality
from hip_model.variants import model_config
from pipeline.errors import UserError
from pipeline.shards.manifest import Manifest
from pipeline.train.build import mask_config
from pipeline.train.options import BatchOptions, DurationOptions, ModelOptions
from pipeline.tune.candidates import GIB, Candidate, CandidateFactory, training_options
from pipeline.tune.options import SearchOptions, TuneOptions
from pipeline.tune.prepared import prepare
from pipeline.tune.searcher import CandidateLog, CandidateSearcher, more_to_come
from pipeline.tune.space import build_space

IMAGE = [Modality("image", 64, 3, (8, 8)), Modality("audio", 64, 1, (64,))]
SMALL = {
    "depth": [1, 2],
    "first_groups": 4,
    "first_latents": [4, 8, 16],
    "maximum_latents": 16,
    "processor_latents": 8,
    "processor_channels": 64,
    "processor_heads": 4,
    "core_layers": [1, 2],
    "embedding_channels": 16,
}


def options(**search: object) -> TuneOptions:
    return TuneOptions(
        shards="clips",
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8),
        duration=DurationOptions(steps=16),
        search=SearchOptions(**{"dials": SMALL, "trials": 6, "scheduler": "none", **search}),
    )


def factory(chosen: TuneOptions, **changes: object) -> CandidateFactory:
    return CandidateFactory(chosen, build_space(chosen.search, chosen), IMAGE, **changes)


def searcher(chosen: TuneOptions, folder: Path) -> CandidateSearcher:
    space = build_space(chosen.search, chosen)
    return CandidateSearcher(chosen.search, chosen.seed, space, CandidateFactory(chosen, space, IMAGE), str(folder))


@pytest.mark.parametrize("budget", ["parameters", "flops"])
def test_candidates_cost_what_the_model_costs(budget: str, tmp_path: Path) -> None:
    chosen = options(budget=budget)
    target = factory(chosen).target
    expected = model_cost(model_config("hip_nano"), IMAGE, mask=mask_config(chosen.mask))
    assert target == (expected.parameters if budget == "parameters" else expected.training_flops)
    found = searcher(chosen, tmp_path)
    for number in range(4):
        candidate = Candidate.from_dict(found.suggest(f"ray{number}")["candidate"])
        config = HiPConfig.from_dict(candidate.overrides)
        cost = model_cost(config, IMAGE, mask=mask_config(chosen.mask))
        assert (cost.parameters if budget == "parameters" else cost.training_flops) == pytest.approx(target, rel=0.03)
        assert candidate.costs is not None
        assert candidate.costs.parameters == count_parameters(config, IMAGE)
        trained = training_options(chosen, candidate)
        assert model_config(trained.model.name).replace(**trained.model.overrides) == config


def test_no_budget_leaves_candidates_as_they_are(tmp_path: Path) -> None:
    made = factory(options(budget="none"))
    candidate = made.make(0, {"dials.depth": 0, "dials.first_latents": 2, "dials.core_layers": 1})
    assert made.target is None
    assert candidate.dials is not None
    assert candidate.dials["width_scale"] == 1.0
    assert candidate.overrides["num_groups"] == [4, 1, 4]


def test_what_does_not_fit_is_rejected_with_its_reason() -> None:
    too_big = factory(options(memory_gib=1e-3)).make(
        0, {"dials.depth": 0, "dials.first_latents": 0, "dials.core_layers": 0}
    )
    assert too_big.rejected is not None
    assert "search.memory_gib=0.001" in too_big.rejected
    assert too_big.costs is not None
    assert too_big.costs.memory_bytes > 1e-3 * GIB
    unreachable = factory(options(budget="parameters", budget_target=1000.0))
    reason = unreachable.make(0, {"dials.depth": 0, "dials.first_latents": 0, "dials.core_layers": 0}).rejected
    assert reason is not None
    assert "nearest costs" in reason


@pytest.mark.parametrize(
    ("key", "values", "says"),
    [
        ("mask.policy", ["tube", "group_uniform"], "'tube' needs a modality with shape"),
        ("mask.per_modality", [{"image": 1, "audio": 1}, {}], "leaves nothing to see"),
        ("loss.weights", [{"image": 0, "audio": 0}, {}], "leaves nothing to learn"),  # its loss of 0 would win
    ],
)
def test_a_mask_or_a_weight_that_trains_nothing_is_rejected_before_it_is_a_trial(
    key: str, values: list[object], says: str
) -> None:
    made = factory(options(budget="none", dials={}, options={key: values}))
    idle, fine = (made.make(0, {key: choice}) for choice in (0, 1))
    assert says in (idle.rejected or "")
    assert fine.rejected is None


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"budget_target": 10.0}, "no candidate of 24 drawn .* the nearest costs .*: give search.budget_target="),
        ({"budget": "parameters", "budget_target": 1e15}, "the nearest costs .*: give search.budget_target="),
        (
            {"budget": "step_time", "budget_target": 1e-7},
            r"no candidate of 4 drawn .* to 1e-07 seconds a step; the near",
        ),
        ({"algorithm": "grid", "memory_gib": 1e-6}, "all of 12 candidates drawn are rejected: needs about"),
    ],
)
def test_a_search_in_which_nothing_can_be_trained_is_refused_at_once(
    search: dict[str, object], message: str, tmp_path: Path
) -> None:
    shards = write_dataset(tmp_path / "shards")
    chosen = replace(options(**search), shards=shards)
    with pytest.raises(UserError, match=message):
        prepare(chosen, Manifest.load(shards)).check_reachable()
    prepare(replace(options(), shards=shards), Manifest.load(shards)).check_reachable()


def test_named_variants_fit_the_budget_or_not() -> None:
    made = factory(options(dials={}, variants=["hip_nano", "hip_micro", {"depth": 1, "processor_channels": 64}]))
    assert made.make(0, {"variant": 0}).rejected is None
    rejected = made.make(1, {"variant": 1}).rejected
    assert rejected is not None
    assert rejected.startswith("hip_micro costs")


def test_time_budgets_are_solved_by_measuring() -> None:
    asked: list[int] = []

    def seconds(config: HiPConfig, trained: object) -> float:
        asked.append(model_cost(config, IMAGE).training_flops)
        return 0.01 + 1e-9 * asked[-1]  # a fixed part that FLOPs do not explain

    chosen = options(budget="step_time")
    made = factory(chosen, step_timer=seconds)
    candidate = made.make(0, {"dials.depth": 1, "dials.first_latents": 2, "dials.core_layers": 1})
    assert candidate.rejected is None
    assert candidate.costs is not None
    assert candidate.costs.step_seconds == pytest.approx(made.target, rel=0.03)
    assert len(asked) <= 8


@settings(max_examples=25, deadline=None)
@given(fixed=st.floats(0.0, 0.05), power=st.floats(0.3, 1.3), factor=st.floats(0.3, 3.0), draw=st.integers(0, 2))
@example(fixed=0.03125, power=0.5, factor=1.03125, draw=2)  # the next width is farther than the first guess reaches
def test_a_time_is_met_however_it_grows_with_flops(fixed: float, power: float, factor: float, draw: int) -> None:
    def seconds(config: HiPConfig, trained: object) -> float:
        return fixed + 0.01 * (model_cost(config, IMAGE).training_flops / 1e7) ** power

    target = seconds(model_config("hip_nano"), None) * factor
    made = factory(options(budget="step_time", budget_target=target), step_timer=seconds)
    candidate = made.make(0, {"dials.depth": 0, "dials.first_latents": draw, "dials.core_layers": 0})
    if candidate.rejected is None:
        assert candidate.costs is not None
        assert candidate.costs.step_seconds == pytest.approx(target, rel=0.03)
    else:  # only where the widths there are leave a gap, or the smallest takes longer
        assert "the nearest takes" in candidate.rejected
        assert target < fixed * 1.3 or factor < 1


def test_what_no_geometry_takes_is_told_in_seconds() -> None:
    made = factory(options(budget="step_time", budget_target=1.0), step_timer=lambda config, trained: 2.0)
    candidate = made.make(0, {"dials.depth": 1, "dials.first_latents": 2, "dials.core_layers": 1})
    assert candidate.rejected == "no geometry of these dials takes 1 seconds a step within 3.0%; the nearest takes 2"
    assert made.nearest_cost == 2.0


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UserError, match="hip_nan"):
        factory(replace(options(), model=ModelOptions("hip_nan")))


@pytest.mark.parametrize("algorithm", ["random", "grid", "tpe", "nsga2", "sobol", "optuna.samplers:RandomSampler"])
def test_every_algorithm_draws_distinct_candidates(algorithm: str, tmp_path: Path) -> None:
    found = searcher(options(algorithm=algorithm, budget="none"), tmp_path)
    drawn = []
    for number in range(6):
        config = found.suggest(f"ray{number}")
        assert isinstance(config, dict)
        drawn.append(json.dumps(config["candidate"]["settings"]))
        found.on_trial_complete(f"ray{number}", {"loss": 1.0 / (number + 1)})
    assert len(set(drawn)) == 6
    assert not more_to_come(str(tmp_path), 6)
    assert found.suggest("ray6") == found.FINISHED


def test_a_used_up_space_ends_the_search(tmp_path: Path) -> None:
    chosen = options(dials={**SMALL, "first_latents": 8}, budget="none", trials=9)
    found = searcher(chosen, tmp_path)
    configs = [found.suggest(f"ray{number}") for number in range(5)]
    assert configs[4] == found.FINISHED
    assert CandidateLog(str(tmp_path)).is_used_up
    for number in range(4):
        assert more_to_come(str(tmp_path), 9), "a candidate without an outcome may be started again"
        found.on_trial_complete(f"ray{number}", {"loss": 1.0})
    assert not more_to_come(str(tmp_path), 9)
    assert len({json.dumps(config["candidate"]["settings"]) for config in configs[:4]}) == 4


def test_a_killed_searcher_goes_on_from_its_log(tmp_path: Path) -> None:
    chosen = options(algorithm="tpe", budget="none")
    first = searcher(chosen, tmp_path)
    before = [first.suggest(f"ray{number}") for number in range(3)]
    first.on_trial_complete("ray0", {"loss": 0.5})
    # Nothing of Ray's own state survived: the candidates are given out again, in order, then new ones.
    second = searcher(chosen, tmp_path)
    again = [second.suggest(f"new{number}") for number in range(4)]
    assert again[:3] == before
    assert again[3]["candidate"]["index"] == 3
    log = CandidateLog(str(tmp_path))
    assert [log.trial_ids[index] for index in range(4)] == ["new0", "new1", "new2", "new3"]
    assert log.outcomes == {0: [0.5]}


def test_models_that_become_equal_are_trained_once(tmp_path: Path) -> None:
    chosen = options(dials={**SMALL, "depth": 1, "first_latents": 8, "core_layers": 1, "outer_extra_channels": [0, 1]})
    found = searcher(chosen, tmp_path)
    assert isinstance(found.suggest("ray0"), dict)
    assert found.suggest("ray1") == found.FINISHED
    [rejected] = found.log.rejected
    assert rejected.rejected == "solved to the budget it is the same model as trial_000"
