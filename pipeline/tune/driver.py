"""Ray Tune at work: resources, scheduler, a Tuner that is new or restored, and what it leaves behind."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.result_grid import ResultGrid
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from pipeline.errors import UserError
from pipeline.interrupts import terminate_as_interrupt
from pipeline.storage import join
from pipeline.tracking.options import resolve_uri
from pipeline.train.options import ScaleOptions
from pipeline.tune.candidates import GIB, UNITS, CandidateFactory, base_config, memory_bytes, plain_pretrain_options
from pipeline.tune.closing import AwaitClosing
from pipeline.tune.memory import kills_as_crashes
from pipeline.tune.prepared import PreparedSearch
from pipeline.tune.progress import Progress
from pipeline.tune.sampling import load_factory
from pipeline.tune.searcher import CandidateSearcher, more_to_come, ray_folder
from pipeline.tune.space import Choice
from pipeline.tune.trial import Trial, TrialSetup

logger = logging.getLogger(__name__)

# What a trial's own process takes beside the workers that it starts.
_COORDINATOR_CPUS = 0.01


def drive(prepared: PreparedSearch, factory: CandidateFactory, parent_run_id: str | None) -> ResultGrid:
    """Run the trials of a search that are not done, on the Ray cluster that this process is connected to.

    Raises:
        UserError: the cluster can never hold a trial.
    """
    # A metric that only the end of training knows is no mistake; ours are the only files worth writing.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune.tune").addFilter(_is_for_users)
    logging.getLogger("ray.tune.utils.util").addFilter(_is_for_users)
    options = prepared.options
    free = ray.available_resources()
    concurrent = concurrent_trials(options.scale, options.search.max_concurrent, free)
    warn_of_memory(prepared, concurrent, free)
    logger.info(
        "%s trials of %d steps, %d at once%s",
        options.search.trials,
        prepared.base_steps,
        concurrent,
        _aim(prepared, factory),
    )
    setup = _setup(prepared, parent_run_id)
    trainable = tune.with_resources(tune.with_parameters(Trial, setup=setup), trial_resources(options.scale))
    location = join(prepared.folder, ray_folder(options.search.trials))
    with kills_as_crashes(), terminate_as_interrupt():  # Ray Tune saves its state on SIGINT only
        if tune.Tuner.can_restore(location):
            logger.info("going on with search %s", prepared.name)
            return tune.Tuner.restore(location, trainable, resume_unfinished=True, restart_errored=True).fit()
        return _new_tuner(prepared, factory, trainable, concurrent).fit()


def _is_for_users(record: logging.LogRecord) -> bool:
    """Ray's way of going on after a stop is not ours, which the verb tells; waiting for trials is meant."""
    message = record.getMessage()
    return record.levelno >= logging.WARNING and "Tuner.restore" not in message and "on_step_end" not in message


def _aim(prepared: PreparedSearch, factory: CandidateFactory) -> str:
    if factory.target is None:
        return ""
    return f", each model solved to {factory.target:,.6g} {UNITS[prepared.options.search.budget]}"


def trial_resources(scale: ScaleOptions) -> dict[str, float]:
    """What Ray reserves for one trial: its worker, or with several workers only their coordinator."""
    if scale.workers > 1:
        return {"cpu": _COORDINATOR_CPUS}
    return {"cpu": scale.cpus_per_worker, "gpu": scale.gpus_per_worker}


def concurrent_trials(scale: ScaleOptions, wanted: int | None, free: dict[str, float]) -> int:
    """Trials that run at once: as many as ``free`` resources hold, or ``wanted`` if that is fewer.

    Raises:
        UserError: not even one fits.
    """
    workers = max(1, scale.workers)
    needs = {"CPU": workers * scale.cpus_per_worker, "GPU": workers * scale.gpus_per_worker}
    if scale.workers > 1:
        needs["CPU"] += _COORDINATOR_CPUS
    fits = min(math.floor(free.get(kind, 0.0) / amount + 1e-9) for kind, amount in needs.items() if amount > 0)
    if fits < 1:
        raise UserError(
            f"a trial needs {needs['CPU']:g} CPU and {needs['GPU']:g} GPU, the cluster has "
            f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free; "
            "lower scale.workers or scale.cpus_per_worker"
        )
    return fits if wanted is None else min(fits, wanted)


def warn_of_memory(prepared: PreparedSearch, concurrent: int, free: dict[str, float]) -> None:
    """Say where trials of the model that candidates are measured by need more main memory than Ray says is there."""
    options = plain_pretrain_options(prepared.options)
    if options.scale.gpus_per_worker or "memory" not in free:
        return
    each = memory_bytes(base_config(prepared.options), prepared.modalities, options) * max(1, options.scale.workers)
    if each * concurrent > free["memory"]:
        logger.warning(
            "%d trials at once need about %.3g GiB, the cluster has %.3g GiB free, and ends trials beyond its memory; "
            "lower batch.per_worker_size=%s or search.max_concurrent, or reject large models by search.memory_gib",
            concurrent,
            each * concurrent / GIB,
            free["memory"] / GIB,
            options.batch.per_worker_size or options.batch.global_size,
        )


def _setup(prepared: PreparedSearch, parent_run_id: str | None) -> TrialSetup:
    options = prepared.options
    tracking = options.tracking
    if tracking.enabled:
        tracking = replace(tracking, uri=resolve_uri(tracking, options.storage), system_metrics=False)
    # Ray Tune tries a crashed trial again, so that its workers need not.
    scale = replace(options.scale, max_failures=0)
    trained = replace(plain_pretrain_options(options), tracking=tracking, resume="auto", dry_run=False, scale=scale)
    trials = join(prepared.folder, "trials")
    search = options.search
    return TrialSetup(trained, trials, search.metric, search.mode, parent_run_id, search.scheduler == "pbt")


def _new_tuner(prepared: PreparedSearch, factory: CandidateFactory, trainable: Any, concurrent: int) -> tune.Tuner:
    options, search = prepared.options, prepared.options.search
    searcher = CandidateSearcher(search, options.seed, prepared.space, factory, prepared.folder)
    drawn_first = search.scheduler == "pbt"  # which Ray refuses to combine with a search algorithm
    return tune.Tuner(
        trainable,
        param_space=_population(prepared, searcher) if drawn_first else None,
        tune_config=tune.TuneConfig(
            search_alg=None if drawn_first else searcher,
            scheduler=build_scheduler(prepared),
            metric=search.metric,
            mode=search.mode,
            num_samples=1 if drawn_first else search.trials,
            max_concurrent_trials=concurrent,
            # A population's member that is moved must be closed where it was, which Ray does not tell a kept worker.
            reuse_actors=not drawn_first,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=ray_folder(search.trials),
            storage_path=prepared.folder,
            failure_config=tune.FailureConfig(max_failures=search.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[
                JsonLoggerCallback(),
                Progress(search.trials, search.metric, search.mode, prepared.base_steps),
                AwaitClosing(
                    join(prepared.folder, "trials"),
                    _trial_name,
                    # A population starts whole, and keeps no worker for another member.
                    _never if drawn_first else partial(more_to_come, prepared.folder, search.trials),
                ),
            ],
            verbose=0,
        ),
    )


def _never() -> bool:
    return False


def _population(prepared: PreparedSearch, searcher: CandidateSearcher) -> dict[str, Any]:
    """All candidates of a population, with the settings that may change beside them."""
    configs = [searcher.suggest(f"member_{number}") for number in range(prepared.options.search.trials)]
    members = [config["candidate"] for config in configs if isinstance(config, dict)]
    keys = list(prepared.space.domains)
    changing = {key: tune.sample_from(partial(_setting, key)) for key in keys}
    return {"candidate": tune.grid_search(members), **changing}


def _setting(key: str, config: dict[str, Any]) -> Any:
    return config["candidate"]["settings"][key]


def build_scheduler(prepared: PreparedSearch) -> TrialScheduler:
    """The scheduler by name. All of them count reported steps, which a resumed trial does not begin again."""
    search, steps = prepared.options.search, prepared.base_steps
    grace = search.grace_steps or max(1, steps // 8)
    if search.scheduler == "none":
        return FIFOScheduler()
    if search.scheduler == "asha":
        # One step longer than training: the last report must not look like a stop.
        return ASHAScheduler(
            time_attr="step", max_t=max(steps, grace) + 1, grace_period=grace, reduction_factor=search.reduction_factor
        )
    if search.scheduler == "pbt":
        mutations = {
            key: list(domain.values) if isinstance(domain, Choice) else domain.mutation()
            for key, domain in prepared.space.domains.items()
        }
        return PopulationBasedTraining(
            time_attr="step",
            perturbation_interval=grace,
            hyperparam_mutations=mutations,
            quantile_fraction=0.25 if search.trials >= 4 else 0.5,
        )
    scheduler: TrialScheduler = load_factory("search.scheduler", search.scheduler)()
    return scheduler


def _trial_name(trial: Any) -> str:
    candidate = (trial.config or {}).get("candidate")
    return f"trial_{candidate['index']:03d}" if candidate else str(trial.trial_id)
