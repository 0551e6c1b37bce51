"""What the register, promote and predict verbs are asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import UserError, nearest
from pipeline.tracking.options import TrackingOptions

OUTPUT_KINDS = ("embeddings", "labels", "reconstructions")
EMBEDDING_FORMATS = ("parquet", "npz")


def check_model_name(key: str, name: str) -> None:
    """Refuse a registered-model name that MLflow's URIs cannot carry.

    Raises:
        UserError: empty, or with ``/``, ``:`` or ``@`` in it.
    """
    if not name.strip() or any(mark in name for mark in "/:@"):
        raise UserError(f"{key}={name!r} cannot name a model; use letters, digits, '-', '_' and '.'")


def check_alias(key: str, alias: str) -> None:
    """Refuse an alias that MLflow does not take.

    Raises:
        UserError: empty, with odd characters, ``latest``, or shaped like a version (``v3``).
    """
    usable = alias.replace("-", "").replace("_", "").isalnum()
    if not usable or alias == "latest" or (alias[0] == "v" and alias[1:].isdigit()):
        raise UserError(
            f"{key}={alias!r} cannot be an alias; use letters, digits, '-' and '_', such as candidate "
            "('latest' and numbers after a v are MLflow's own)"
        )


@dataclass(frozen=True)
class RegisterOptions:
    """Package a trained model and add it to the registry as a new version."""

    run: str  # what to register: run name, run folder, checkpoint, model folder, runs:/<id>
    name: str  # registered model's name
    storage: str = "hip-runs"  # where runs are kept
    alias: str | None = "candidate"  # alias that will point at the new version
    description: str = ""  # a sentence or two for the model card
    licence: str = "not stated"  # licence of the weights, for the model card
    pytorch: bool = True  # also write the plain PyTorch flavour (a torch.export graph)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)

    def __post_init__(self) -> None:
        check_model_name("name", self.name)
        if self.alias is not None:
            check_alias("alias", self.alias)


@dataclass(frozen=True)
class GateOptions:
    """When a candidate may take over."""

    metric: str | None = None  # metric that must be better; none: the evaluation task's own first metric
    maximum_modality_loss: float = 0.02  # share of its value that any other metric may get worse by
    require_improvement: bool = True  # off: not being worse is enough

    def __post_init__(self) -> None:
        if not 0 <= self.maximum_modality_loss < 1:
            raise UserError(
                f"gate.maximum_modality_loss={self.maximum_modality_loss} is a share: give 0 or more and less than 1"
            )


@dataclass(frozen=True)
class PromoteOptions:
    """Move an alias to another version, only if the gate holds."""

    name: str  # registered model's name
    candidate: str = "candidate"  # alias or version that wants the place
    alias: str = "champion"  # alias that moves
    storage: str = "hip-runs"  # where runs are kept
    rollback: bool = False  # move the alias back to the version that it pointed at before
    shards: str | None = None  # dataset to evaluate both on; none: the evaluations already recorded on the versions
    task: str = "reconstruction"  # evaluation task when shards is given
    absent: tuple[str, ...] = ()  # modalities that shards does not have, of versions that read them
    gate: GateOptions = field(default_factory=GateOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)

    def __post_init__(self) -> None:
        check_model_name("name", self.name)
        check_alias("alias", self.alias)
        if self.candidate == self.alias and not self.rollback:
            raise UserError(f"candidate={self.candidate} and alias={self.alias} are the same; nothing could move")
        if self.absent and self.shards is None:
            raise UserError(f"absent={list(self.absent)} is about shards=; recorded evaluations stay as they are")


@dataclass(frozen=True)
class PredictOptions:
    """Run a model on raw media."""

    model: str  # models:/name@alias, run name, checkpoint or model folder
    input: str  # a media file, a folder of them, or a table (csv, parquet, txt) with a column "path"
    output: str = "predictions"  # folder for the results
    kind: str = "embeddings"  # embeddings, labels or reconstructions
    format: str = "parquet"  # of embeddings: parquet or npz
    top_k: int = 5  # labels kept for each file
    mask_ratio: float = 0.0  # share of tokens hidden before a reconstruction
    batch_size: int = 8  # clips in one forward pass
    workers: int | None = None  # Ray Data decoding workers; 0: all in this process; none: Ray from 65 files on
    trust: bool = False  # run the code of a registered model that hip register did not make
    storage: str = "hip-runs"  # where runs are kept
    tracking: TrackingOptions = field(default_factory=TrackingOptions)

    def __post_init__(self) -> None:
        for key, choices in (("kind", OUTPUT_KINDS), ("format", EMBEDDING_FORMATS)):
            value = getattr(self, key)
            if value not in choices:
                raise UserError(f"{key}={value!r} is not known; {nearest(value, choices)}")
        for key in ("top_k", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers={self.workers} must be 0 or more")
        if not 0 <= self.mask_ratio < 1:
            raise UserError(f"mask_ratio={self.mask_ratio} must be at least 0 and less than 1")
