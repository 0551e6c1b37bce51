"""Everything that ``hip tune`` can be told: all of ``hip pretrain``, and the search."""

from __future__ import annotations

from dataclasses import dataclass, field

from hip_model.geometry import named_dials
from pipeline.errors import UserError
from pipeline.train.options import PretrainOptions, at_least, between, one_of

ALGORITHMS = ("random", "grid", "tpe", "nsga2", "sobol")
SCHEDULERS = ("none", "asha", "pbt")
BUDGETS = ("none", "parameters", "flops", "step_time")


@dataclass(frozen=True)
class SearchOptions:
    """What to try, how to choose, and what makes candidates comparable."""

    name: str | None = None  # none: made from the dataset, the space and the seed
    trials: int = 12  # candidates that are trained; a grid may hold fewer
    algorithm: str = "random"  # random | grid | tpe | nsga2 | sobol, or package.module:factory (an Optuna sampler)
    scheduler: str = "asha"  # none | asha | pbt, or package.module:factory (a Ray Tune scheduler)
    metric: str = "loss"  # what trials are judged by: any metric that training reports
    mode: str = "min"  # min | max
    multi_objective: bool = False  # the algorithm also prefers cheap candidates; needs budget=none
    budget: str = "flops"  # cost that all candidates are solved to: none | parameters | flops | step_time
    budget_target: float | None = None  # parameters, training FLOPs a sample, or seconds a step; none: model's own cost
    budget_tolerance: float = 0.03  # largest distance from the target, as a share of it
    memory_gib: float | None = None  # candidates whose estimate is above this are rejected before they start
    base: str = "hip_16"  # the geometry whose dials hold where the space leaves them alone
    dials: dict[str, object] = field(default_factory=dict)  # dial: value, [choices] or {low, high, log, step}
    variants: list[object] = field(default_factory=list)  # instead of dials: model names or {dial: value} settings
    options: dict[str, object] = field(default_factory=dict)  # pretrain key (dotted): value, [choices] or range
    max_concurrent: int | None = None  # trials at once; none: what the cluster has free
    grace_steps: int | None = None  # steps before a trial may be stopped (asha) or changed (pbt); none: an eighth
    reduction_factor: int = 3  # asha: one in so many goes on at each rung
    max_failures: int = 1  # times a crashed trial is tried again

    def __post_init__(self) -> None:
        if self.name is not None and (not self.name.strip() or "/" in self.name or self.name.startswith(".")):
            raise UserError(f"search.name={self.name!r} must be a plain folder name, such as search.name=groups")
        at_least("search.trials", self.trials, 1)
        for key, choices in (("algorithm", ALGORITHMS), ("scheduler", SCHEDULERS)):
            if ":" not in getattr(self, key):
                one_of(f"search.{key}", getattr(self, key), choices)
        one_of("search.mode", self.mode, ("min", "max"))
        one_of("search.budget", self.budget, BUDGETS)
        between("search.budget_tolerance", self.budget_tolerance, 0.001, 0.5)
        one_of("search.base", self.base, sorted(named_dials()))
        at_least("search.max_concurrent", self.max_concurrent, 1)
        at_least("search.grace_steps", self.grace_steps, 1)
        at_least("search.reduction_factor", self.reduction_factor, 2)
        at_least("search.max_failures", self.max_failures, 0)
        for key in ("budget_target", "memory_gib"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"search.{key}={value} must be positive")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.dials and self.variants:
            raise UserError("search.dials and search.variants are both given; search dials or a list of variants")
        if not (self.dials or self.variants or self.options):
            raise UserError(
                "nothing to search: give search.dials, search.variants or search.options, "
                "or a preset such as search=geometry"
            )
        if self.scheduler == "pbt" and (self.dials or self.variants):
            raise UserError(
                "search.scheduler=pbt changes training hyperparameters while trials run, "
                "which a geometry cannot follow; search only search.options, or use search.scheduler=asha"
            )
        if self.multi_objective and self.budget != "none":
            raise UserError(
                f"search.multi_objective=true weighs loss against cost, but search.budget={self.budget} makes all "
                "candidates cost the same; set search.budget=none, or leave search.multi_objective=false"
            )
        if self.budget_target is not None and self.budget == "none":
            raise UserError(
                "search.budget_target is given but search.budget=none; choose parameters, flops or step_time"
            )


@dataclass(frozen=True)
class TuneOptions(PretrainOptions):
    """``hip tune``: many short pretrainings of one search space. The keys of ``hip pretrain`` hold for every trial."""

    search: SearchOptions = field(default_factory=lambda: SearchOptions(dials={"depth": [1, 2, 3]}))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init is not None:
            raise UserError(f"init={self.init}: the trials of a search start from scratch; leave init=null")
