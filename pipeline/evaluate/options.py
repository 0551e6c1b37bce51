"""What an evaluation is asked to do: the tree behind ``conf/evaluate.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import UserError
from pipeline.tracking.options import TrackingOptions
from pipeline.train.options import at_least, between, one_of

TASKS = ("reconstruction", "linear_probe", "knn", "classification", "multilabel", "retrieval", "segmentation")
PROBE_KINDS = ("linear", "attentive")
PROBE_LEVELS = ("encoder", "processor", "all")
POOLS = ("mean", "mean_std", "groups")
EMBED_ENGINES = ("process", "ray")
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class EmbedOptions:
    """How latents are computed."""

    engine: str = "process"  # process: here, batch by batch; ray: Ray Data batch inference
    batch_size: int = 32  # examples a forward pass
    chunk_examples: int = 256  # examples a saved piece: what an interrupted evaluation loses at most
    cache: str | None = None  # folder of finished pieces; none: <output>/embeddings
    workers: int = 1  # Ray actors (engine=ray)
    gpus_per_worker: float = 0.0  # of a GPU, per actor (engine=ray)

    def __post_init__(self) -> None:
        one_of("embed.engine", self.engine, EMBED_ENGINES)
        for name in ("batch_size", "chunk_examples", "workers"):
            at_least(f"embed.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class ProbeOptions:
    """The classifier on frozen latents."""

    kind: str = "linear"  # linear: logistic regression on pooled latents; attentive: one learned query over them
    # "encoder": all encoder levels side by side; "all": each alone, the best by held-out fit; "processor"; a number
    level: str = "encoder"
    pool: str = "groups"  # mean | mean_std | groups: see ``pool_features``
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)  # inverse penalties tried by cross-validation
    folds: int = (
        5  # parts of the fit split, each with every class and whole files; above 5,000 examples one is held out
    )
    iterations: int = 300  # L-BFGS iterations at most (linear), optimizer steps (attentive)
    learning_rate: float = 1e-3  # attentive only

    def __post_init__(self) -> None:
        one_of("probe.kind", self.kind, PROBE_KINDS)
        if self.level not in PROBE_LEVELS and not self.level.isdigit():
            raise UserError(f"probe.level={self.level!r}: use a block's number, 'encoder', 'processor' or 'all'")
        one_of("probe.pool", self.pool, POOLS)
        if not self.strengths or min(self.strengths) <= 0:
            raise UserError(f"probe.strengths={list(self.strengths)}: give positive numbers, such as [0.1,1.0]")
        at_least("probe.folds", self.folds, 2)
        at_least("probe.iterations", self.iterations, 1)


@dataclass(frozen=True)
class MaskSweepOptions:
    """The masks of ``task=reconstruction``."""

    policy: str = "group_uniform"  # how masked tokens are drawn
    ratios: tuple[float, ...] = (0.5, 0.75, 0.85, 0.95)  # shares of tokens hidden, one measurement each

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise UserError(f"mask.ratios={list(self.ratios)}: give shares between 0 and 1, such as [0.5,0.85]")


@dataclass(frozen=True)
class NeighbourOptions:
    """``task=knn``."""

    neighbours: int = 20  # neighbours that vote, weighted by cosine distance

    def __post_init__(self) -> None:
        at_least("knn.neighbours", self.neighbours, 1)


@dataclass(frozen=True)
class RetrievalOptions:
    """``task=retrieval``: find the same example through another modality."""

    query: str | None = None  # modality asked with; none: the first of the data
    target: str | None = None  # modality searched; none: the second
    ranks: tuple[int, ...] = (1, 5, 10)  # the k of recall@k
    align: bool = (
        True  # fit a linear map between the two spaces on the fit split (the MAE never saw a contrastive loss)
    )


@dataclass(frozen=True)
class SegmentationOptions:
    """``task=segmentation``: one class per pixel, asked from the decoder."""

    images: str = "image"  # modality that is segmented
    labels: str = "segmentation"  # modality with one class number per token
    ignore: int = 255  # class number that counts for nothing (the void of PASCAL VOC)
    voc: str | None = None  # a PASCAL VOC folder: it is written to ``shards`` first, at the model's size
    train: str = "head"  # head: the model stays frozen; full: a copy of it is fine-tuned
    iterations: int = 300  # optimizer steps
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        one_of("segmentation.train", self.train, ("head", "full"))
        at_least("segmentation.iterations", self.iterations, 1)


@dataclass(frozen=True)
class IntervalOptions:
    """Bootstrap confidence intervals."""

    confidence: float = 0.95  # share of resamples inside the interval
    resamples: int = 1000  # bootstrap resamples of the scored examples

    def __post_init__(self) -> None:
        between("interval.confidence", self.confidence, 0.5, 0.999)
        at_least("interval.resamples", self.resamples, 20)


@dataclass(frozen=True)
class LimitOptions:
    """Upper bounds on what is read, for a quick look; the examples come from all over the split."""

    fit_examples: int | None = None  # examples of the fit split
    score_examples: int | None = None  # examples of the scored split

    def __post_init__(self) -> None:
        for name in ("fit_examples", "score_examples"):
            bound = getattr(self, name)
            if bound is not None:
                at_least(f"limit.{name}", bound, 1)


@dataclass(frozen=True)
class EvaluateFigureOptions:
    """Pictures of the report."""

    enabled: bool = True
    examples: int = 4  # examples shown

    def __post_init__(self) -> None:
        at_least("figures.examples", self.examples, 1)


@dataclass(frozen=True)
class EvaluateOptions:
    """One evaluation of one model on one dataset."""

    shards: str  # token shards: folder or URI
    model: str  # folder with model.safetensors and config.json (jobs resolve runs and registry names to one)
    task: str = "linear_probe"
    output: str | None = None  # where the report goes; none: <storage>/evaluations/<model>-<task>-<key>
    storage: str = "hip-runs"  # folder or URI of all runs
    split: str = "validation"  # scored
    fit_split: str = "train"  # probes and neighbours are fitted on this
    absent: tuple[str, ...] = ()  # modalities of the model that this dataset does not have
    seed: int = 0
    threads: int = 0  # torch threads; 0: leave as it is
    device: str = "auto"  # auto | cpu | cuda
    export: str | None = None  # linear_probe: write the model with the fitted head to this folder
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    mask: MaskSweepOptions = field(default_factory=MaskSweepOptions)
    knn: NeighbourOptions = field(default_factory=NeighbourOptions)
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    segmentation: SegmentationOptions = field(default_factory=SegmentationOptions)
    interval: IntervalOptions = field(default_factory=IntervalOptions)
    limit: LimitOptions = field(default_factory=LimitOptions)
    figures: EvaluateFigureOptions = field(default_factory=EvaluateFigureOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)

    def __post_init__(self) -> None:
        one_of("task", self.task, TASKS)
        one_of("split", self.split, SPLITS)
        one_of("fit_split", self.fit_split, SPLITS)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        at_least("seed", self.seed, 0)
        if self.export is not None and (self.task, self.probe.kind) != ("linear_probe", "linear"):
            raise UserError(
                f"export={self.export}: only task=linear_probe with probe.kind=linear fits a head to export"
            )
