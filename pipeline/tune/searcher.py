"""Suggests candidates to Ray Tune: Optuna draws, the factory solves, all is written down before it is trained."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from pipeline import storage
from pipeline.seeding import derive_seed
from pipeline.tune.candidates import Candidate, CandidateFactory
from pipeline.tune.options import SearchOptions
from pipeline.tune.sampling import new_study
from pipeline.tune.space import Space

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

CANDIDATES = "candidates.json"
# Rejected or repeated draws in a row after which the space counts as used up.
_FRUITLESS_DRAWS = 200
# So many fruitless draws of a sampler before chance takes over: in a small space it comes back to its favourite.
_PATIENCE = 20
# What a searcher makes again from its log, in another process.
_REBUILT = ("log", "_study", "_grid", "_by_index", "_asked", "_orphans", "_chance")


class CandidateLog:
    """Every candidate of a search with its Ray trial and its outcome, rewritten whole at each change."""

    def __init__(self, folder: str) -> None:
        self._location = storage.join(folder, CANDIDATES)
        self.candidates: list[Candidate] = []
        self.trial_ids: dict[int, str] = {}
        self.outcomes: dict[int, list[float] | None] = {}
        self.is_used_up = False  # no further candidate was found
        if storage.exists(self._location):
            self._read()

    def add(self, candidate: Candidate, trial_id: str | None) -> None:
        """Record a new candidate; without a trial id it was rejected."""
        self.candidates.append(candidate)
        if trial_id is not None:
            self.trial_ids[candidate.index] = trial_id
        self._write()

    def assign(self, index: int, trial_id: str) -> None:
        """Give a known candidate to another Ray trial."""
        self.trial_ids[index] = trial_id
        self._write()

    def finish(self, index: int, values: list[float] | None) -> None:
        """Record what a candidate reached; none: it failed."""
        self.outcomes[index] = values
        self._write()

    def use_up(self) -> None:
        """Record that the space holds no further candidate."""
        self.is_used_up = True
        self._write()

    def index_of(self, trial_id: str) -> int | None:
        """The candidate that a Ray trial trains."""
        return next((index for index, known in self.trial_ids.items() if known == trial_id), None)

    @property
    def accepted(self) -> list[Candidate]:
        """Those that a trial trains."""
        return [candidate for candidate in self.candidates if candidate.rejected is None]

    @property
    def rejected(self) -> list[Candidate]:
        """Those that were refused before any trial."""
        return [candidate for candidate in self.candidates if candidate.rejected is not None]

    def _read(self) -> None:
        content = json.loads(storage.read_bytes(self._location))
        self.candidates = [Candidate.from_dict(entry) for entry in content["candidates"]]
        self.trial_ids = {int(index): trial for index, trial in content["trial_ids"].items()}
        self.outcomes = {int(index): values for index, values in content["outcomes"].items()}
        self.is_used_up = content["is_used_up"]

    def _write(self) -> None:
        content = {
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "trial_ids": self.trial_ids,
            "outcomes": self.outcomes,
            "is_used_up": self.is_used_up,
        }
        storage.write_atomic(self._location, json.dumps(content, indent=1).encode())


def more_to_come(folder: str, trials: int) -> bool:
    """Whether a search of so many trials will still start one, by its log."""
    log = CandidateLog(folder)
    if not log.is_used_up and len(log.accepted) < trials:
        return True
    return any(candidate.index not in log.outcomes for candidate in log.accepted)


class CandidateSearcher(Searcher):
    """A Ray Tune searcher over candidates. Its whole memory is the candidate log, so a killed search loses nothing."""

    def __init__(self, search: SearchOptions, seed: int, space: Space, factory: CandidateFactory, folder: str) -> None:
        super().__init__(metric=search.metric, mode=search.mode)
        self._search = search
        self._seed = seed
        self._space = space
        self._factory = factory
        self._folder = folder
        self._start()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Ray's config of the next candidate, or the sign that there are no more."""
        if self._orphans:
            orphan = self._by_index[self._orphans.pop(0)]
            self.log.assign(orphan.index, trial_id)
            return self._config(orphan)
        if len(self.log.accepted) >= self._search.trials:
            return str(Searcher.FINISHED)
        candidate = self._next_candidate()
        if candidate is None:
            self.log.use_up()
            return str(Searcher.FINISHED)
        self.log.add(candidate, trial_id)
        self._by_index[candidate.index] = candidate
        return self._config(candidate)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """The space is this searcher's own; Ray's is empty."""
        return not config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what a candidate reached."""
        index = self.log.index_of(trial_id)
        if index is None:
            return
        candidate = self._by_index[index]
        values = None if error or not result else self._values(candidate, result)
        is_new = index not in self.log.outcomes
        self.log.finish(index, values)
        if is_new:
            self._tell(candidate, values)

    def save(self, checkpoint_path: str) -> None:
        """A mark that Ray looks for; the memory itself is the candidate log, which is always current."""
        Path(checkpoint_path).write_text(self._folder)

    def restore(self, checkpoint_path: str) -> None:
        """Begin again from the candidate log."""
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in _REBUILT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self.log = CandidateLog(self._folder)
        self._by_index = {candidate.index: candidate for candidate in self.log.accepted}
        self._asked: dict[int, optuna.Trial] = {}
        # Candidates that no trial Ray remembers belongs to: it was killed before it wrote them down.
        known = known_trial_ids(storage.join(self._folder, ray_folder(self._search.trials)))
        self._orphans = [c.index for c in self.log.accepted if self.log.trial_ids.get(c.index) not in known]
        seed = derive_seed(self._seed, "search", len(self.log.candidates))
        self._study = new_study(self._search, seed)
        self._chance = new_study(replace(self._search, algorithm="random"), seed)
        self._grid = self._grid_draws() if self._search.algorithm == "grid" else None
        for candidate in self.log.accepted:
            if candidate.index in self.log.outcomes:
                self._tell(candidate, self.log.outcomes[candidate.index])

    def _next_candidate(self) -> Candidate | None:
        """The next new candidate that can be trained, none if no more are found; rejected ones are recorded."""
        for attempt in range(_FRUITLESS_DRAWS):
            asked = None if self._grid is not None else self._ask(by_chance=attempt >= _PATIENCE)
            drawn = asked.params if asked is not None else next(self._grid or iter(()), None)
            if drawn is None:
                return None
            settings = self._space.values(drawn)
            if not any(settings == other.settings for other in self.log.candidates):
                candidate = self._unless_the_same_model(self._factory.make(len(self.log.candidates), drawn))
                if candidate.rejected is None:
                    if asked is not None:
                        self._asked[candidate.index] = asked
                    return candidate
                logger.info("rejected %s: %s", candidate.label, candidate.rejected)
                self.log.add(candidate, None)
            if asked is not None:
                self._study.tell(asked, state=_failed())
        return None

    def _ask(self, by_chance: bool) -> optuna.Trial:
        """A draw of the sampler, or a uniform one where the sampler keeps coming back to what was tried."""
        if by_chance:
            self._study.enqueue_trial(self._chance.ask(self._distributions()).params)
        return self._study.ask(self._distributions())

    def _unless_the_same_model(self, candidate: Candidate) -> Candidate:
        """Reject a candidate that became a model already tried when it was solved to the budget."""
        for other in self.log.accepted:
            if candidate.trains_the_same(other):
                return replace(candidate, rejected=f"solved to the budget it is the same model as {other.name}")
        return candidate

    def _distributions(self) -> dict[str, Any]:
        return {key: domain.distribution() for key, domain in self._space.domains.items()}

    def _grid_draws(self) -> Iterator[dict[str, Any]]:
        keys = list(self._space.domains)
        points = itertools.product(*[self._space.domains[key].grid() for key in keys])
        done = [candidate.drawn for candidate in self.log.candidates]
        return (draw for point in points if (draw := dict(zip(keys, point, strict=True))) not in done)

    def _config(self, candidate: Candidate) -> dict[str, Any]:
        # Training settings stand beside the candidate, where population-based training can change them.
        return {"candidate": candidate.to_dict(), **candidate.training_settings}

    def _values(self, candidate: Candidate, result: Mapping[str, Any]) -> list[float] | None:
        if not math.isfinite(result.get(self._search.metric, math.nan)):
            return None
        values = [float(result[self._search.metric])]
        if self._search.multi_objective and candidate.costs is not None:
            values.append(float(candidate.costs.training_flops))
        return values

    def _tell(self, candidate: Candidate, values: list[float] | None) -> None:
        import optuna

        asked = self._asked.pop(candidate.index, None)
        if asked is not None:
            self._study.tell(asked, values, state=None if values else _failed())
            return
        # Drawn by a process that is gone: put what became of it into this one's memory.
        state = optuna.trial.TrialState.COMPLETE if values else _failed()
        self._study.add_trial(
            optuna.trial.create_trial(
                params=candidate.drawn, distributions=self._distributions(), values=values, state=state
            )
        )


def ray_folder(trials: int) -> str:
    """Where Ray Tune keeps its own state. A search made longer is a new one to Ray, which takes over all candidates."""
    return f"ray_{trials}"


def known_trial_ids(folder: str) -> set[str]:
    """The trials in the newest state that Ray Tune has written to ``folder``."""
    files = storage.list_files(folder)
    states = [file for file in files if file.base_name.startswith("experiment_state-")]
    if not states:
        return set()
    newest = max(states, key=lambda file: (file.mtime_ns or 0, str(file.base_name)))
    content = storage.read_bytes(storage.join(folder, newest.base_name)).decode(errors="replace")
    return set(re.findall(r'\\*"trial_id\\*":\s*\\*"(\w+)', content))


def _failed() -> optuna.trial.TrialState:
    import optuna

    return optuna.trial.TrialState.FAIL
