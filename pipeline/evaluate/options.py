"""What an evaluation is asked to do: the tree behind ``conf/evaluate.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import UserError, nearest
from pipeline.tracking.options import TrackingOptions

TASKS = ("reconstruction", "linear_probe", "knn", "classification", "multilabel", "retrieval", "segmentation")
PROBE_KINDS = ("linear", "attentive")
EMBED_ENGINES = ("process", "ray")
SPLITS = ("train", "validation")


def require(holds: bool, key: str, value: object, wanted: str) -> None:
    """Refuse a value.

    Raises:
        UserError: ``holds`` is false; the message names key, value and what is valid.
    """
    if not holds:
        raise UserError(f"{key}={value!r} is not possible: {wanted}")


def require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a name that is not among ``choices``.

    Raises:
        UserError: naming the nearest choice.
    """
    require(value in choices, key, value, nearest(value, choices))


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
        require_choice("embed.engine", self.engine, EMBED_ENGINES)
        for name in ("batch_size", "chunk_examples", "workers"):
            require(getattr(self, name) >= 1, f"embed.{name}", getattr(self, name), "use at least 1")


@dataclass(frozen=True)
class ProbeOptions:
    """The classifier on frozen latents."""

    kind: str = "linear"  # linear: logistic regression on mean-pooled latents; attentive: one learned query over them
    level: str = (
        "processor"  # a block's number, "processor", or "all" (every encoder level, the best one by held-out fit)
    )
    strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)  # inverse penalties tried on a held-out part of the fit split
    held_out: float = 0.2  # the share of the fit split that chooses the penalty
    iterations: int = 300  # L-BFGS iterations at most (linear), optimizer steps (attentive)
    learning_rate: float = 1e-3  # attentive only

    def __post_init__(self) -> None:
        require_choice("probe.kind", self.kind, PROBE_KINDS)
        require(
            self.level in ("processor", "all") or self.level.lstrip("-").isdigit(),
            "probe.level",
            self.level,
            "use a block number, 'processor' or 'all'",
        )
        require(len(self.strengths) > 0 and min(self.strengths) > 0, "probe.strengths", self.strengths, "use positives")
        require(0 < self.held_out < 1, "probe.held_out", self.held_out, "use a share between 0 and 1")
        require(self.iterations >= 1, "probe.iterations", self.iterations, "use at least 1")


@dataclass(frozen=True)
class MaskSweepOptions:
    """The masks of ``task=reconstruction``."""

    policy: str = "group_uniform"  # how masked tokens are drawn
    ratios: tuple[float, ...] = (0.5, 0.75, 0.85, 0.95)  # shares of tokens hidden, one measurement each

    def __post_init__(self) -> None:
        valid = len(self.ratios) > 0 and all(0 < ratio < 1 for ratio in self.ratios)
        require(valid, "mask.ratios", self.ratios, "use shares between 0 and 1, for example [0.5,0.85]")


@dataclass(frozen=True)
class NeighbourOptions:
    """``task=knn``."""

    neighbours: int = 20  # neighbours that vote, weighted by cosine distance

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, "knn.neighbours", self.neighbours, "use at least 1")


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


@dataclass(frozen=True)
class IntervalOptions:
    """Bootstrap confidence intervals."""

    confidence: float = 0.95  # share of resamples inside the interval
    resamples: int = 1000  # bootstrap resamples of the scored examples

    def __post_init__(self) -> None:
        require(0.5 <= self.confidence < 1, "interval.confidence", self.confidence, "use a share such as 0.95")
        require(self.resamples >= 20, "interval.resamples", self.resamples, "use at least 20")


@dataclass(frozen=True)
class LimitOptions:
    """Upper bounds on what is read, for a quick look."""

    fit_examples: int | None = None  # examples of the fit split
    score_examples: int | None = None  # examples of the scored split


@dataclass(frozen=True)
class EvaluateFigureOptions:
    """Pictures of the report."""

    enabled: bool = True
    examples: int = 4  # examples shown

    def __post_init__(self) -> None:
        require(self.examples >= 1, "figures.examples", self.examples, "use at least 1")


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
        require_choice("task", self.task, TASKS)
        require_choice("split", self.split, SPLITS)
        require_choice("fit_split", self.fit_split, SPLITS)
        require_choice("device", self.device, ("auto", "cpu", "cuda"))
        require(
            self.export is None or (self.task == "linear_probe" and self.probe.kind == "linear"),
            "export",
            self.export,
            "only task=linear_probe with probe.kind=linear fits a head that can be exported",
        )
