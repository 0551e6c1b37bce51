"""From settings to candidates: a geometry solved to the budget, its costs, and why it was rejected if it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from hip_model.accounting import activation_bytes, model_cost, optimizer_bytes
from hip_model.budget import BudgetError, SolvedGeometry, solve_budget
from hip_model.config import HiPConfig
from hip_model.errors import ConfigError
from hip_model.geometry import GeometryDials, named_dials
from hip_model.modality import Modality
from hip_model.variants import ModelConfig, model_config
from pipeline.errors import UserError
from pipeline.train.build import loss_config, mask_config, trained_config
from pipeline.train.options import ModelOptions, PretrainOptions
from pipeline.tune.options import TuneOptions
from pipeline.tune.space import Space, dials_of, with_option

GIB = 2**30
UNITS = {"parameters": "parameters", "flops": "training FLOPs a sample", "step_time": "seconds a step"}

# How often a geometry is measured on the way to a time.
_TIMED_SOLUTIONS = 8
_FARTHEST_STEP = 20.0  # in the logarithm of FLOPs: beyond every width, and still a number
# Seconds of one training step of a config, measured where trials will run.
StepTimer = Callable[[ModelConfig, PretrainOptions], float]


@dataclass(frozen=True)
class Costs:
    """What a candidate costs."""

    parameters: int
    training_flops: int  # per sample, forward and backward
    memory_bytes: int  # estimate for one worker
    step_seconds: float | None = None  # measured, where the budget is a time


@dataclass(frozen=True)
class Candidate:
    """One point of the space, ready to train or rejected."""

    index: int
    drawn: dict[str, Any]  # what the algorithm drew, by key
    settings: dict[str, Any]  # what that means, by key
    model_name: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    dials: dict[str, Any] | None = None  # after solving; none for a named variant
    costs: Costs | None = None
    rejected: str | None = None  # why it is not trained

    @property
    def name(self) -> str:
        """The folder and run of its trial."""
        return f"trial_{self.index:03d}"

    @property
    def label(self) -> str:
        """Settings in one line."""
        return ", ".join(f"{key.removeprefix('dials.')}={_short(value)}" for key, value in self.settings.items())

    @property
    def training_settings(self) -> dict[str, Any]:
        """The settings that are keys of ``hip pretrain`` rather than of the geometry."""
        return {key: value for key, value in self.settings.items() if not key.startswith("dials.") and key != "variant"}

    def trains_the_same(self, other: Candidate) -> bool:
        """Whether both train one model in one way."""
        mine = (self.model_name, self.overrides, self.training_settings)
        return self.rejected is None and mine == (other.model_name, other.overrides, other.training_settings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Candidate:
        """The candidate that ``to_dict`` gave."""
        costs = values["costs"]
        return cls(**{**values, "costs": None if costs is None else Costs(**costs)})


class CandidateFactory:
    """Makes candidates of one search, all solved to one budget.

    Raises:
        UserError: the model that sets the budget is unknown or does not fit the data.
    """

    def __init__(
        self, options: TuneOptions, space: Space, modalities: Sequence[Modality], step_timer: StepTimer | None = None
    ) -> None:
        self._options = options
        self._space = space
        self._modalities = list(modalities)
        self._step_timer = step_timer
        self._base = base_config(options)
        try:
            model_cost(self._base, self._modalities)
        except ConfigError as error:
            raise UserError(f"model={options.model.name}: {error}") from error
        self.target = self._find_target()
        self.nearest_cost: float | None = None  # to the target, of the geometries that could not be solved to it

    def make(self, index: int, drawn: Mapping[str, Any]) -> Candidate:
        """The candidate for what the algorithm drew; one that cannot be trained says why in ``rejected``."""
        settings = self._space.values(drawn)
        candidate = Candidate(index, dict(drawn), settings)
        try:
            trained_as = training_options(self._options, candidate)
            mask_config(trained_as.mask).check(self._modalities)
            loss_config(trained_as).check(mask_config(trained_as.mask), self._modalities)
            return self._check_memory(self._with_geometry(candidate, trained_as), trained_as)
        except ConfigError as error:
            if isinstance(error, BudgetError):
                self._remember(error.nearest.cost)
            return replace(candidate, rejected=str(error))

    def _remember(self, cost: float) -> None:
        assert self.target is not None
        if self.nearest_cost is None or abs(cost - self.target) < abs(self.nearest_cost - self.target):
            self.nearest_cost = cost

    def _find_target(self) -> float | None:
        search = self._options.search
        if search.budget == "none":
            return None
        if search.budget_target is not None:
            return search.budget_target
        return self._cost(self._base, plain_pretrain_options(self._options))

    def _cost(self, config: ModelConfig, options: PretrainOptions) -> float:
        """What ``search.budget`` counts."""
        if self._options.search.budget == "step_time":
            assert self._step_timer is not None
            return self._step_timer(config, options)
        cost = model_cost(config, self._modalities, mask=mask_config(options.mask))
        return float(cost.parameters if self._options.search.budget == "parameters" else cost.training_flops)

    def _with_geometry(self, candidate: Candidate, options: PretrainOptions) -> Candidate:
        variant = candidate.settings.get("variant")
        if isinstance(variant, str) and variant not in named_dials():
            return self._as_named(candidate, variant, options)
        if not self._space.searches_geometry:
            costs = self._costs(self._base, options, None)
            name, overrides = self._options.model.name, dict(self._options.model.overrides)
            return replace(candidate, model_name=name, overrides=overrides, costs=costs)
        if isinstance(variant, str):
            dials = named_dials()[variant]
        elif variant is not None:
            dials = named_dials()[self._options.search.base].changed(**variant)
        else:
            dials = dials_of(self._options.search, self._space, candidate.settings)
        solved = self._solve(dials, options)
        costs = self._costs(solved.config, options, solved.cost)
        overrides = solved.config.to_dict()
        return replace(candidate, model_name="hip_16", overrides=overrides, dials=solved.dials.to_dict(), costs=costs)

    def _as_named(self, candidate: Candidate, name: str, options: PretrainOptions) -> Candidate:
        """A named model that no dials describe: it cannot be scaled, so it fits the budget or not."""
        config = model_config(name)
        tolerance = self._options.search.budget_tolerance
        cost = None
        if self.target is not None:
            cost = self._cost(config, options)
            if abs(cost / self.target - 1) > tolerance:
                unit = UNITS[self._options.search.budget]
                raise ConfigError(f"{name} costs {cost:,.6g} {unit}, not {self.target:,.6g} within {tolerance:.1%}")
        return replace(candidate, model_name=name, costs=self._costs(config, options, cost))

    def _solve(self, dials: GeometryDials, options: PretrainOptions) -> SolvedGeometry:
        search = self._options.search
        if self.target is None:
            return SolvedGeometry(dials, dials.build(), 0.0)
        unit = UNITS[search.budget]
        if search.budget != "step_time":
            cost = lambda config: self._cost(config, options)  # noqa: E731
            return solve_budget(dials, self.target, cost, search.budget_tolerance, unit)
        return self._solve_time(dials, options)

    def _solve_time(self, dials: GeometryDials, options: PretrainOptions) -> SolvedGeometry:
        """Time grows with FLOPs, if not in proportion: solve for FLOPs, measure, aim again from what was measured."""
        assert self.target is not None
        tolerance = self._options.search.budget_tolerance

        def flops(config: HiPConfig) -> float:
            return float(model_cost(config, self._modalities, mask=mask_config(options.mask)).training_flops)

        def measured(dials: GeometryDials, config: HiPConfig) -> SolvedGeometry:
            return SolvedGeometry(dials, config, self._cost(config, options))

        best = measured(dials, dials.build())
        tried = {flops(best.config): best.cost}
        reach = 1.0
        for _ in range(_TIMED_SOLUTIONS):
            if best.error(self.target) <= tolerance:
                return best
            try:
                solved = solve_budget(dials, _aim(tried, self.target, reach), flops, tolerance / 3, UNITS["flops"])
            except BudgetError as error:
                solved = error.nearest
            if solved.cost in tried:
                if min(tried.values()) < self.target < max(tried.values()):  # there is no width in between
                    break
                reach *= 2  # time grows less with FLOPs than was guessed: the next width is farther
                continue
            reach = 1.0
            found = measured(solved.dials, solved.config)
            tried[solved.cost] = found.cost
            best = min(best, found, key=lambda known: known.error(self.target or 1.0))
        if best.error(self.target) <= tolerance:
            return best
        raise BudgetError(
            f"no geometry of these dials takes {self.target:.4g} seconds a step within {tolerance:.1%}; "
            f"the nearest takes {best.cost:.4g}",
            best,
        )

    def _costs(self, config: ModelConfig, options: PretrainOptions, solved: float | None) -> Costs:
        cost = model_cost(config, self._modalities, mask=mask_config(options.mask))
        seconds = solved if self._options.search.budget == "step_time" else None
        memory = memory_bytes(config, self._modalities, options)
        return Costs(cost.parameters, cost.training_flops, memory, seconds)

    def _check_memory(self, candidate: Candidate, options: PretrainOptions) -> Candidate:
        limit = self._options.search.memory_gib
        assert candidate.costs is not None
        if limit is None or candidate.costs.memory_bytes <= limit * GIB:
            return candidate
        needed = candidate.costs.memory_bytes / GIB
        reason = f"needs about {needed:.3g} GiB a worker, search.memory_gib={limit:g}; lower batch.per_worker_size"
        return replace(candidate, rejected=reason)


def base_config(options: PretrainOptions) -> ModelConfig:
    """The model that sets the budget.

    Raises:
        UserError: there is no such model, or an override it does not have.
    """
    try:
        return model_config(options.model.name).replace(**options.model.overrides)
    except ConfigError as error:
        raise UserError(f"model={options.model.name}: {error}") from error


def training_options(options: PretrainOptions, candidate: Candidate) -> PretrainOptions:
    """``options`` with a candidate's settings, model and name."""
    options = plain_pretrain_options(options)
    for key, value in candidate.training_settings.items():
        options = with_option(options, key, value)
    if candidate.model_name:
        options = replace(options, model=ModelOptions(candidate.model_name, candidate.overrides))
    return replace(options, run=replace(options.run, name=candidate.name))


def memory_bytes(config: ModelConfig, modalities: Sequence[Modality], options: PretrainOptions) -> int:
    """Estimate of what one worker holds: weights, gradients, optimizer state and the activations of its micro-batch."""
    workers = max(1, options.scale.workers)
    mixed = options.engine.precision != "fp32"
    stage = options.engine.stage if options.engine.kind == "deepspeed" else 0
    share = -(-options.batch.global_size // workers)
    examples = min(share, options.batch.per_worker_size or share)
    trained = trained_config(config, options)
    per_example = activation_bytes(trained, modalities, mask_config(options.mask), 2 if mixed else 4)
    parameters = model_cost(config, modalities).parameters
    return optimizer_bytes(parameters, mixed, stage, workers) + examples * per_example


def plain_pretrain_options(options: PretrainOptions) -> PretrainOptions:
    """The part of a search's options that ``hip pretrain`` knows."""
    return PretrainOptions(**{field.name: getattr(options, field.name) for field in fields(PretrainOptions)})


def _aim(tried: Mapping[float, float], target: float, reach: float) -> float:
    """FLOPs that should take ``target`` seconds, from FLOPs and seconds tried: a power law through the nearest two.

    ``reach`` goes that many times as far from the nearest one, in logarithms.
    """
    points = sorted((math.log(flops), math.log(seconds)) for flops, seconds in tried.items())
    near = sorted(points, key=lambda point: abs(point[1] - math.log(target)))[:2]
    below = [point for point in points if point[1] <= math.log(target)]
    above = [point for point in points if point[1] > math.log(target)]
    if below and above:
        near = [max(below, key=lambda point: point[1]), min(above, key=lambda point: point[1])]
    power = 1.0
    if len(near) == 2 and near[0][0] != near[1][0]:
        power = (near[1][1] - near[0][1]) / (near[1][0] - near[0][0])
    # Noise can make the power tiny or negative; steps as large as those would leave everything known.
    step = reach * (math.log(target) - near[0][1]) / min(max(power, 0.2), 2.0)
    return math.exp(near[0][0] + min(max(step, -_FARTHEST_STEP), _FARTHEST_STEP))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
