"""A search that has been checked: its name, its folder, its space and what makes candidates; and whose it is."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hip_model.modality import Modality
from pipeline import storage
from pipeline.errors import UserError
from pipeline.seeding import derive_seed
from pipeline.shards.manifest import Manifest
from pipeline.storage import join, redact
from pipeline.train.build import TRAIN, modalities_of
from pipeline.train.differences import differences, flatten
from pipeline.train.resume import without_keys
from pipeline.tune.candidates import (
    GIB,
    UNITS,
    Candidate,
    CandidateFactory,
    base_config,
    plain_pretrain_options,
    training_options,
)
from pipeline.tune.datasets import compared_datasets, with_absolute_datasets
from pipeline.tune.metrics import check_metric, judged_alike
from pipeline.tune.options import TuneOptions
from pipeline.tune.sampling import new_study
from pipeline.tune.space import Space, build_space
from pipeline.tune.timing import StepComparer, StepTimer, can_measure_here, compare_steps

SEARCH = "search.json"
_DRY_RUN_CANDIDATES = 8
# So many candidates may be rejected before a search counts as impossible.
_REACHABLE_DRAWS = 24
_TIMED_DRAWS = 4  # each of which takes up to nine measurements
# Keys that say where and how much, not what is compared: they may change between the starts of one search.
_MAY_CHANGE = (
    "resume", "dry_run", "tracking", "ray", "scale", "storage", "shards", "metrics", "figures", "run", "ingest",
    "checkpoint", "search.name", "search.trials", "search.max_concurrent", "search.max_failures",
)  # fmt: skip


@dataclass(frozen=True)
class PreparedSearch:
    """Everything a search needs but Ray."""

    options: TuneOptions
    name: str
    folder: str
    description: dict[str, Any]  # what decides its outcome, by dotted key
    space: Space
    manifest: Manifest
    datasets: Mapping[str, Manifest] = field(default_factory=dict)  # that the space lists, by location

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those of the dataset, as the model takes them."""
        return tuple(modalities_of(self.manifest))

    def factory(self, compare: StepComparer = compare_steps) -> CandidateFactory:
        """What turns draws into candidates; where the budget is a time, ``compare`` measures steps."""
        plain = plain_pretrain_options(self.options)
        timer = StepTimer((base_config(self.options), plain), self.manifest, compare)
        return CandidateFactory(self.options, self.space, self.modalities, timer)

    def total_steps(self, candidate: Candidate) -> int:
        """Optimizer steps of a candidate that trains to its end."""
        trained = training_options(self.options, candidate)
        manifest = self.datasets.get(trained.shards, self.manifest)
        return trained.duration.total_steps(manifest.num_examples(TRAIN), trained.batch.global_size)

    @property
    def base_steps(self) -> int:
        """Steps of a trial whose length is not searched."""
        return self.options.duration.total_steps(self.manifest.num_examples(TRAIN), self.options.batch.global_size)

    def claim(self) -> bool:
        """Write ``search.json``, or check that the one there is of the same search; true when it goes on with one.

        Raises:
            UserError: another search of this name, or one that ``resume`` forbids or misses.
        """
        location = join(self.folder, SEARCH)
        found = json.loads(storage.read_bytes(location)) if storage.exists(location) else None
        resume = self.options.resume
        if found is None:
            if resume == "must":
                raise UserError(
                    f"resume=must, but there is no search in {redact(self.folder)}; use resume=auto to start"
                )
            content = {"format_version": 1, "name": self.name, "description": self.description}
            storage.write_atomic(location, json.dumps(content, indent=1, default=str).encode())
            return False
        if resume == "never":
            raise UserError(
                f"search {self.name} exists in {redact(self.folder)} and resume=never; "
                "choose another search.name, or resume=auto to go on with it"
            )
        then, now = ({**about, "space": None} for about in (found["description"], _plain(self.description)))
        lines = differences(then, now, TuneOptions)  # the space is told by its keys, not twice
        if lines:
            raise UserError(
                f"search {self.name} in {redact(self.folder)} is another search:\n  " + "\n  ".join(lines) + "\n"
                "give the same values to go on with it, or another search.name to start a new one"
            )
        return True

    def preview(self) -> str:
        """The plan in words, with some candidates drawn as the search would."""
        search = self.options.search
        factory = self.factory()
        lines = [
            f"search     {self.name} in {redact(self.folder)}",
            f"space      {', '.join(self.space.domains) or 'fixed'}",
        ]
        if factory.target is not None:
            lines.append(
                f"budget     {factory.target:,.6g} {UNITS[search.budget]} within {search.budget_tolerance:.1%}"
            )
        lines.append(
            f"trials     {search.trials} x {self.base_steps} steps, {search.algorithm}, scheduler {search.scheduler}"
        )
        for index, drawn in enumerate(self._draws(min(search.trials, _DRY_RUN_CANDIDATES))):
            candidate = factory.make(index, drawn)
            lines.append(f"  {candidate.name}  {_figures(candidate)}  {candidate.label}")
        return "\n".join(lines)

    def check_reachable(self) -> None:
        """Draw some candidates before anything is written or started; one that could be trained is enough.

        Raises:
            UserError: none can, naming the nearest budget or the reasons.
        """
        is_timed = self.options.search.budget == "step_time"
        if is_timed and not can_measure_here(self.options):
            return  # only the workers can measure: they will say the same of the first candidates
        factory, reasons = self.factory(), []
        for index, drawn in enumerate(self._draws(_TIMED_DRAWS if is_timed else _REACHABLE_DRAWS)):
            candidate = factory.make(index, drawn)
            if candidate.rejected is None:
                return
            reasons.append(candidate.rejected)
        too_large = [reason for reason in reasons if "search.memory_gib" in reason]
        if factory.nearest_cost is not None and not too_large:
            unit = UNITS[self.options.search.budget]
            raise UserError(
                f"no candidate of {len(reasons)} drawn can be scaled to {factory.target:,.6g} {unit}; "
                f"the nearest costs {factory.nearest_cost:,.6g}: give search.budget_target={factory.nearest_cost:.6g}, "
                "another model= to set the budget, or other dials"
            )
        raise UserError(f"all of {len(reasons)} candidates drawn are rejected: {'; '.join((too_large or reasons)[:2])}")

    def _draws(self, count: int) -> Iterator[dict[str, Any]]:
        """The first points of a grid, or what the algorithm would draw before it has learned anything."""
        search, domains = self.options.search, self.space.domains
        if search.algorithm == "grid":
            points = itertools.product(*[domain.grid() for domain in domains.values()])
            yield from (dict(zip(domains, point, strict=True)) for point in itertools.islice(points, count))
            return
        study = new_study(search, derive_seed(self.options.seed, "search", 0))
        distributions = {key: domain.distribution() for key, domain in domains.items()}
        yield from (study.ask(distributions).params for _ in range(count))


def prepare(options: TuneOptions, manifest: Manifest) -> PreparedSearch:
    """Check a search against its data.

    Raises:
        UserError: a space that cannot be searched, a metric that no trial will report, or no training examples.
    """
    if not manifest.splits.get(TRAIN):
        raise UserError(
            f"{options.shards} has no examples in split {TRAIN!r}; it has {manifest.splits or 'none at all'}"
        )
    check_metric(options, manifest)
    space = with_absolute_datasets(build_space(options.search, plain_pretrain_options(options)))
    options = judged_alike(options, space)
    datasets = compared_datasets(space, manifest, options)
    if options.search.algorithm == "grid":
        space.grid_size()
    description = _describe(options, space, [manifest.fingerprint, *(m.fingerprint for m in datasets.values())])
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()
    name = options.search.name or f"search-{digest[:8]}"
    base = storage.absolute(options.storage)
    return PreparedSearch(options, name, join(base, name), description, space, manifest, datasets)


def _describe(options: TuneOptions, space: Space, fingerprints: list[str]) -> dict[str, Any]:
    kept = without_keys(flatten(_plain(asdict(options))), _MAY_CHANGE)
    return {**kept, "space": space.describe(), "fingerprint": ", ".join(fingerprints)}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a JSON file."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _figures(candidate: Candidate) -> str:
    if candidate.costs is None or candidate.rejected is not None:
        return f"rejected: {candidate.rejected}"
    costs = candidate.costs
    return (
        f"{costs.parameters / 1e6:.3g} M parameters, {costs.training_flops / 1e9:.3g} GFLOP a sample, "
        f"{costs.memory_bytes / GIB:.2g} GiB"
    )


def example_tokens(modalities: Sequence[Modality]) -> int:
    """Tokens of one example."""
    return sum(modality.num_tokens for modality in modalities)
