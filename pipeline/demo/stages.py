"""The verbs of the demonstration with their arguments, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.demo.media import make_media, recipe_for, write_unseen
from pipeline.demo.options import DemoOptions
from pipeline.shards.manifest import Manifest
from pipeline.storage import absolute

MODEL_NAME = "hip-demo"
SEARCH_NAME = "demo-search"
RUN_NAME = "demo"


@dataclass(frozen=True)
class Stage:
    """One verb with its arguments."""

    verb: str
    arguments: tuple[str, ...]
    name: str  # unique in the demonstration


class Plan:
    """What to run; what comes after ``preprocess`` depends on whether the data has labels and a validation split."""

    def __init__(self, options: DemoOptions, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.shards, self.runs = str(folder / "tokens"), str(folder / "runs")
        self.unseen = folder / "unseen.csv"
        if options.source:
            self.source = absolute(options.source)
            self.recipe = recipe_for(self.source)
        else:
            make_media(options, folder)
            self.source, self.recipe = str(folder / "clips"), "demo_mixed"

    def stages(self) -> Iterator[Stage]:
        """All verbs; those after the first can be told once it has run."""
        yield self._preprocess()
        yield from self._after_preprocess()

    def _preprocess(self) -> Stage:
        """Media to shards; a folder of one's own may hold more bad files than a dataset should."""
        data = (f"source={self.source}", f"shards={self.shards}", f"tokens={self.recipe}")
        tolerance = ("max_failed_fraction=0.5",) if self.options.source else ()
        arguments = (*data, "validation_fraction=0.25", *tolerance)
        return Stage("preprocess", arguments, "preprocess")

    def _after_preprocess(self) -> list[Stage]:
        """Training and what follows."""
        manifest = Manifest.load(self.shards)
        labelled = len(manifest.label_names) > 1 and manifest.num_examples("validation") > 0
        stages = [self._pretrain(), self._tune(), self._reconstruct(manifest.num_examples("validation") > 0)]
        if labelled:
            stages.append(self._probe())
        return [*stages, self._register(labelled), self._predict(labelled)]

    def _pretrain(self) -> Stage:
        half = max(1, self.options.steps // 2)
        arguments = (
            *self._training(),
            "model=hip_micro",
            f"run.name={RUN_NAME}",
            "scale=local_two",
            "engine=deepspeed_zero1",
            f"duration.steps={self.options.steps}",
            f"checkpoint.every_steps={half}",
            "validation.every_steps=0",
            f"metrics.every_steps={max(1, self.options.steps // 15)}",
        )
        return Stage("pretrain", arguments, "pretrain")

    def _tune(self) -> Stage:
        arguments = (
            *self._training(),
            "model=hip_nano",
            "search=small",
            f"search.name={SEARCH_NAME}",
            f"search.trials={self.options.trials}",
            f"duration.steps={max(8, self.options.steps // 3)}",
            "metrics.every_steps=4",
        )
        return Stage("tune", arguments, "tune")

    def _training(self) -> tuple[str, ...]:
        return (
            f"shards={self.shards}",
            f"storage={self.runs}",
            "batch.global_size=8",
            "optim.learning_rate=0.003",
            f"seed={self.options.seed}",
            "figures.every_steps=0",
        )

    def _evaluation(self) -> tuple[str, ...]:
        return (f"shards={self.shards}", f"storage={self.runs}", f"model={self.runs}/{RUN_NAME}")

    def _reconstruct(self, held_out: bool) -> Stage:
        split = () if held_out else ("split=train",)
        arguments = (*self._evaluation(), "task=reconstruction", "mask.ratios=[0.85]", *split)
        return Stage("evaluate", arguments, "evaluate reconstruction")

    def _probe(self) -> Stage:
        arguments = (*self._evaluation(), "task=linear_probe", f"export={self.folder / 'with-head'}")
        return Stage("evaluate", arguments, "evaluate linear_probe")

    def _register(self, labelled: bool) -> Stage:
        model = self.folder / "with-head" if labelled else f"{self.runs}/{RUN_NAME}"
        return Stage("register", (f"run={model}", f"name={MODEL_NAME}", f"storage={self.runs}"), "register")

    def _predict(self, labelled: bool) -> Stage:
        media = str(self.folder / "unseen")
        if self.options.source:
            media = str(self.unseen) if write_unseen(self.source, self.shards, self.unseen) else self.source
        arguments = (
            f"model=models:/{MODEL_NAME}@candidate",
            f"input={media}",
            f"output={self.folder / 'predictions'}",
            f"storage={self.runs}",
            "workers=0",
            f"kind={'labels' if labelled else 'embeddings'}",
        )
        return Stage("predict", arguments, "predict")
