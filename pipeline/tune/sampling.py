"""Search algorithms by name: each is an Optuna sampler."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.tune.options import SearchOptions

if TYPE_CHECKING:
    import optuna


def new_study(search: SearchOptions, seed: int) -> optuna.Study:
    """A study in memory: its sampler draws, and learns from what it is told.

    Raises:
        UserError: an algorithm of the user's own that cannot be loaded.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["minimize" if search.mode == "min" else "maximize"] + ["minimize"] * search.multi_objective
    return optuna.create_study(sampler=_sampler(search, seed % 2**31), directions=directions)


def _sampler(search: SearchOptions, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "grid": lambda: optuna.samplers.RandomSampler(seed=seed),  # draws come from the grid itself
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=5),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=8),
        "sobol": lambda: _sobol(seed),
    }
    if search.algorithm in samplers:
        return samplers[search.algorithm]()
    return load_factory("search.algorithm", search.algorithm)()


def _sobol(seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of its interface, which stays in here
        return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


def load_factory(key: str, name: str) -> Callable[[], Any]:
    """The callable at ``package.module:factory``.

    Raises:
        UserError: nothing is there.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[], Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}={name}: {error}; give package.module:factory") from error
    return found
