"""The search space: which dials and training options vary, over which values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from hip_model.errors import ConfigError
from hip_model.geometry import GeometryDials, named_dials
from hip_model.variants import available_models
from pipeline.config.build import build_options, with_value
from pipeline.errors import UserError, nearest
from pipeline.train.options import DurationOptions, PretrainOptions
from pipeline.tune.options import SearchOptions

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_Options = TypeVar("_Options")
# These belong to the search as a whole: a trial that changed them would be another experiment.
_FIXED_KEYS = (
    "run", "storage", "resume", "dry_run", "tracking", "model", "scale", "init", "resize_positions", "modalities",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One of a list of values."""

    values: tuple[Any, ...]

    def distribution(self) -> BaseDistribution:
        """As Optuna sees it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(tuple(range(len(self.values))))

    def value(self, drawn: Any) -> Any:
        """The setting for what Optuna drew."""
        return self.values[int(drawn)]

    def grid(self) -> list[Any]:
        """Draws of a complete grid."""
        return list(range(len(self.values)))


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole ones if both ends, and the step, are whole."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        ends = isinstance(self.low, int) and isinstance(self.high, int)
        return ends and float(self.step or 1).is_integer()

    def distribution(self) -> BaseDistribution:
        """As Optuna sees it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, drawn: Any) -> Any:
        """The setting for what Optuna drew."""
        return int(drawn) if self.is_whole else float(drawn)

    def mutation(self) -> Any:
        """As Ray's population-based training draws from it: whole numbers stay whole."""
        from ray import tune

        if self.is_whole:
            draw = tune.lograndint if self.log else tune.randint
            return draw(int(self.low), int(self.high) + 1)
        return (tune.loguniform if self.log else tune.uniform)(self.low, self.high)

    def grid(self) -> list[Any]:
        """Draws of a complete grid.

        Raises:
            UserError: the range is continuous.
        """
        step = self.step or (1 if self.is_whole else None)
        if step is None or self.log:
            raise UserError(f"a grid needs values: give {self.low} to {self.high} as a list, or with a step and no log")
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + index * step for index in range(count)]


@dataclass(frozen=True)
class Space:
    """What varies, by key: ``dials.<dial>``, ``variant``, or a dotted pretrain key; and the dials that are fixed."""

    domains: Mapping[str, Choice | Range]
    fixed_dials: Mapping[str, Any]
    searches_geometry: bool

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Settings by key for what Optuna drew."""
        return {key: domain.value(drawn[key]) for key, domain in self.domains.items()}

    def grid_size(self) -> int:
        """Points of the complete grid.

        Raises:
            UserError: a key whose range is continuous.
        """
        points = 1
        for key, domain in self.domains.items():
            try:
                points *= len(domain.grid())
            except UserError as error:
                raise UserError(f"search.algorithm=grid, {key}: {error}") from error
        return points

    def describe(self) -> dict[str, Any]:
        """The space as JSON values, to store and to compare."""
        domains = {key: {type(domain).__name__.lower(): _plain(asdict(domain))} for key, domain in self.domains.items()}
        return {"domains": domains, "fixed_dials": _plain(dict(self.fixed_dials))}


def build_space(search: SearchOptions, base: PretrainOptions) -> Space:
    """Read and check the space of a search.

    Raises:
        UserError: a dial, an option or a variant that does not exist or cannot take a value, naming the nearest.
    """
    domains: dict[str, Choice | Range] = {}
    fixed: dict[str, Any] = {}
    for dial, entry in search.dials.items():
        key = f"search.dials.{dial}"
        domain = _domain(key, entry)
        for value in [domain] if not isinstance(domain, (Choice, Range)) else _samples(domain):
            _check_dial(key, dial, value)
        if isinstance(domain, (Choice, Range)):
            domains[f"dials.{dial}"] = domain
        else:
            fixed[dial] = domain
    if search.variants:
        for variant in search.variants:
            _check_variant(variant)
        domains["variant"] = Choice(tuple(search.variants))
    for option, entry in _dotted(search.options).items():
        domain = _domain(f"search.options.{option}", entry)
        domain = domain if isinstance(domain, (Choice, Range)) else Choice((domain,))
        for value in _samples(domain):
            with_option(base, option, value)
        domains[option] = domain
    return Space(domains, fixed, bool(search.dials or search.variants))


def _dotted(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{optim: {weight_decay: [0, 1]}}``, as a command line gives it, by dotted key; ranges stay whole."""
    found: dict[str, Any] = {}
    for key, entry in options.items():
        is_group = isinstance(entry, Mapping) and not {"low", "high", "log", "step"} & set(entry)
        found |= _dotted(entry, f"{prefix}{key}.") if is_group else {f"{prefix}{key}": entry}
    return found


def with_option(options: _Options, key: str, value: Any) -> _Options:
    """``options`` with the dotted ``key`` set; the option classes' own checks run.

    Raises:
        UserError: no such key, or a value it cannot take.
    """
    return _with_option(options, key, value, f"search.options.{key}")


def _with_option(options: _Options, key: str, value: Any, full_key: str) -> _Options:
    head, _, rest = key.partition(".")
    assert is_dataclass(options)
    assert not isinstance(options, type)
    names = [field.name for field in fields(options)]
    if head not in names:
        raise UserError(f"{full_key}: there is no key {head!r}; {nearest(head, names)}")
    if isinstance(options, PretrainOptions) and head in _FIXED_KEYS:
        raise UserError(f"{full_key}: {head} is the same for all trials; set it outside the search")
    if head == "duration" and rest in [field.name for field in fields(DurationOptions)]:
        # A length takes the place of the one there is, which may be counted in another unit.
        return replace(options, duration=build_options(DurationOptions, {rest: value}, "search.options.duration."))
    current = getattr(options, head)
    if not rest:
        if is_dataclass(current):
            raise UserError(f"{full_key} is a group; name one of its keys, {_names(current)}")
        return with_value(options, head, value, full_key)
    if isinstance(current, dict):
        return with_value(options, head, {**current, rest: value}, full_key)
    if not is_dataclass(current):
        raise UserError(f"{full_key} goes below {head!r}, which is a value")
    return replace(options, **{head: _with_option(current, rest, value, full_key)})


def dials_of(search: SearchOptions, space: Space, settings: Mapping[str, Any]) -> GeometryDials:
    """The dials that a candidate's settings describe.

    Raises:
        ConfigError: two dials that exclude each other (more outer levels than levels).
    """
    changes = {key.removeprefix("dials."): value for key, value in settings.items() if key.startswith("dials.")}
    return named_dials()[search.base].changed(**{**space.fixed_dials, **changes})


def _domain(key: str, entry: Any) -> Any:
    if isinstance(entry, (list, tuple)):
        if not entry:
            raise UserError(f"{key} is an empty list; give its values")
        return Choice(tuple(entry))
    if not isinstance(entry, Mapping):
        return entry
    known = ("low", "high", "log", "step")
    if unknown := sorted(set(entry) - set(known)):
        raise UserError(f"{key}: a range has no {unknown[0]!r}; {nearest(unknown[0], known)}")
    if not {"low", "high"} <= set(entry):
        raise UserError(f"{key}: a range needs low and high, got {', '.join(entry) or 'nothing'}")
    for part in ("low", "high", "step"):
        value = entry.get(part)
        if (value is not None or part != "step") and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{key}: {part}={value!r} is no number")
    if entry.get("step") is not None and not entry["step"] > 0:
        raise UserError(f"{key}: step={entry['step']} must be above 0")
    found = Range(entry["low"], entry["high"], bool(entry.get("log", False)), entry.get("step"))
    if not found.low <= found.high or (found.log and found.low <= 0) or (found.log and found.step):
        raise UserError(f"{key}: low={found.low} to high={found.high} (log={found.log}, step={found.step}) is no range")
    return found


def _samples(domain: Choice | Range) -> tuple[Any, ...]:
    """What shows whether a key can take the values of a domain: all, or both ends and, if fractions are drawn, one."""
    if isinstance(domain, Choice):
        return domain.values
    between = () if domain.is_whole else (domain.low + (domain.step or (domain.high - domain.low) / math.e),)
    return (domain.low, domain.high, *between)


def _check_dial(key: str, dial: str, value: Any) -> None:
    known = [field.name for field in fields(GeometryDials)]
    if dial not in known:
        raise UserError(f"search.dials: there is no dial {dial!r}; {nearest(dial, known)}")
    try:
        # Deep enough that only this dial's own range is checked here.
        GeometryDials(depth=8).changed(**{dial: value}) if dial != "depth" else GeometryDials(depth=value)
    except ConfigError as error:
        raise UserError(f"{key}: {error}") from error


def _check_variant(variant: Any) -> None:
    if isinstance(variant, str):
        if variant not in available_models():
            raise UserError(f"search.variants: there is no model {variant!r}; {nearest(variant, available_models())}")
    elif isinstance(variant, Mapping):
        for dial, value in variant.items():
            _check_dial(f"search.variants.{dial}", str(dial), value)
    else:
        raise UserError(f"search.variants: {variant!r} is neither a model name nor a setting of dials")


def _names(group: Any) -> str:
    return ", ".join(field.name for field in fields(group))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
