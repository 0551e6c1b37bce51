"""One trial inside Ray Tune: the training function of ``hip pretrain``, run in step with the scheduler."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ray import tune

from pipeline import storage
from pipeline.errors import TrainingDiverged
from pipeline.train.options import PretrainOptions
from pipeline.tune.candidates import Candidate
from pipeline.tune.closing import CLOSING_SECONDS
from pipeline.tune.memory import free_device_memory, is_out_of_memory
from pipeline.tune.population import adopt_checkpoint, alone_in, continue_under
from pipeline.tune.remote_report import answered_by
from pipeline.tune.results import DIVERGED, FAILED, FINISHED, OUT_OF_MEMORY
from pipeline.tune.space import with_option


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a search share."""

    options: PretrainOptions  # of the trial, but for what the candidate changes
    storage: str  # where trials' run folders are
    metric: str
    mode: str
    parent_run_id: str | None
    is_population: bool = False  # settings and config wander between trials, names do not


@dataclass(frozen=True)
class _Ended:
    """The training thread's last word."""

    status: str
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: BaseException | None = None


class Trial(tune.Trainable):
    """Trains one candidate. ``step`` lets training go on to its next report and returns that.

    The thread that trains waits at each report until Ray asks for the next one, so a scheduler's decision takes hold
    before another step is computed, and a stopped trial frees its worker at once for the next candidate.
    """

    _config: dict[str, Any]
    _thread: threading.Thread | None
    _told: queue.Queue[dict[str, Any] | _Ended]
    _go_on: threading.Semaphore
    _stopping: threading.Event
    _latest: dict[str, Any]
    _donor: str | None
    _began: float

    def setup(self, config: dict[str, Any], setup: TrialSetup) -> None:
        """Take a candidate; nothing is trained yet."""
        self._setup: TrialSetup = setup
        self._start_over(config)

    def step(self) -> dict[str, Any]:
        """Metrics of the next report; ``done`` with the last one.

        Raises:
            HipError: training failed for a reason that is no result.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._train, name="training", daemon=True)
            self._began = time.monotonic()
            self._thread.start()
        else:
            self._go_on.release()
        told = self._told.get()
        if not isinstance(told, _Ended):
            self._latest = {**told, "status": "training", "seconds": time.monotonic() - self._began}
            return dict(self._latest)
        if told.error is not None:
            raise told.error
        seconds = time.monotonic() - self._began
        ended = {**self._latest, **told.metrics, "status": told.status, "reason": told.reason, "seconds": seconds}
        if told.status != FINISHED:  # the worst result, not a crash: schedulers and algorithms learn from it
            ended |= {self._setup.metric: math.inf if self._setup.mode == "min" else -math.inf}
        return {"step": 0, **ended, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Train another candidate in this process: nothing is imported twice."""
        self._close()
        self._start_over(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Only where the trial's own checkpoints are: the run folder keeps them, whatever becomes of Ray."""
        return {"run_folder": self._run_folder()}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from another trial's checkpoint (population-based training) or from this one's own."""
        self._donor = str(checkpoint["run_folder"])

    def cleanup(self) -> None:
        """End training in order, so that the tracked run has a true status."""
        self._close()

    def _start_over(self, config: dict[str, Any]) -> None:
        self._config = config
        self._thread = None
        self._told = queue.Queue()
        self._go_on = threading.Semaphore(0)
        self._stopping = threading.Event()
        self._latest = {}
        self._donor = None
        self._began = time.monotonic()

    def _close(self) -> None:
        self._stopping.set()
        self._go_on.release()
        if self._thread is not None:
            self._thread.join(CLOSING_SECONDS)

    def _run_folder(self) -> str:
        return storage.join(self._setup.storage, self._run_name())

    def _run_name(self) -> str:
        if self._setup.is_population:
            return str(self.trial_name)
        return Candidate.from_dict(self._config["candidate"]).name

    def _train(self) -> None:
        try:
            with alone_in(self._run_folder()):
                self._told.put(self._train_to_the_end())
        except TrainingDiverged as error:
            self._told.put(_Ended(DIVERGED, str(error)))
        except BaseException as error:
            if is_out_of_memory(error):
                free_device_memory()
                self._told.put(_Ended(OUT_OF_MEMORY, str(error).splitlines()[0][:300]))
            else:
                self._told.put(_Ended(FAILED, str(error), error=error))

    def _train_to_the_end(self) -> _Ended:
        from pipeline.train.runner import run_pretraining, train_in_process

        options = self._options()
        if self._donor is not None and self._donor != self._run_folder():
            adopt_checkpoint(self._donor, self._run_folder())
        continue_under(self._run_folder(), options)  # the candidate log already tells whose run this is
        if options.scale.workers <= 1:
            result = train_in_process(options, self._report, self._setup.parent_run_id)
        else:
            with answered_by(self._report) as report:
                result = run_pretraining(options, report, self._setup.parent_run_id)
        step = result.examples_consumed // options.batch.global_size
        return _Ended(FINISHED, metrics={**result.metrics, "step": step})

    def _options(self) -> PretrainOptions:
        """The candidate's options with what population-based training has changed since."""
        candidate = Candidate.from_dict(self._config["candidate"])
        options = self._setup.options
        for key in candidate.training_settings:
            options = with_option(options, key, self._config[key])
        model = replace(options.model, name=candidate.model_name, overrides=candidate.overrides)
        run = replace(options.run, name=self._run_name())
        return replace(options, model=model, storage=self._setup.storage, run=run)

    def _report(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Called by the training loop; true ends it."""
        if self._stopping.is_set():
            return True
        self._told.put({**metrics, "step": step})
        self._go_on.acquire()
        return self._stopping.is_set()
