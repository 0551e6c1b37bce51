"""What a run of one of the paper's comparisons can be told: the tree behind ``conf/experiment.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import UserError
from pipeline.evaluate.studies import STUDIES
from pipeline.tracking.options import TrackingOptions
from pipeline.train.options import at_least, one_of

THROUGHPUT = "throughput"


@dataclass(frozen=True)
class ExperimentOptions:
    """One comparison of the paper on one dataset."""

    study: str  # which comparison
    shards: str | None = None  # token shards with labels and a validation split; study=throughput needs none
    storage: str = "hip-runs"  # where runs, derived datasets and the table go
    output: str | None = None  # folder of the table; none: <storage>/experiments/<study>-<scale>
    scale: str = "small"  # small: hours on a CPU; full: the paper's size
    seeds: tuple[int, ...] = (0,)  # everything is repeated for each
    arms: tuple[str, ...] = ()  # only these lines; none named: all
    pretrain_epochs: float | None = None  # none: the scale's
    finetune_epochs: float | None = None  # none: the scale's
    batch_size: int | None = None  # none: the scale's
    fit_examples: int | None = None  # labelled examples used; none: all
    threads: int = 0  # torch threads; 0: leave as it is
    gpus: int = 8  # that scale=full pretrains on, one worker each
    resamples: int = 1000  # of the bootstrap intervals
    tracking: TrackingOptions = field(default_factory=TrackingOptions)

    def __post_init__(self) -> None:
        one_of("study", self.study, [*STUDIES, THROUGHPUT])
        one_of("scale", self.scale, ("small", "full"))
        if self.study != THROUGHPUT and not self.shards:
            raise UserError(f"study={self.study} needs shards=<token shards with labels>")
        for arm in self.arms if self.study != THROUGHPUT else ():
            one_of("arms", arm, [known.name for known in STUDIES[self.study].arms])
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds={list(self.seeds)}: give one or more different whole numbers, such as [0,1,2]")
        for seed in self.seeds:
            at_least("seeds", seed, 0)
        at_least("pretrain_epochs", self.pretrain_epochs, 0.001)
        at_least("finetune_epochs", self.finetune_epochs, 0.001)
        at_least("batch_size", self.batch_size, 2)
        at_least("gpus", self.gpus, 1)
