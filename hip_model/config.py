"""The dimensions of a model, checked when they are written down rather than when a reshape fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from hip_model.errors import ConfigError

REGROUP_KINDS = ("reshape", "transpose_reshape")
POSITION_KINDS = ("learned", "fourier")
CHECKPOINTING_KINDS = ("none", "blocks")

# One kind for every modality, or one per modality name.
PositionKinds = str | Mapping[str, str]

_PER_BLOCK = (
    "num_groups",
    "num_latents",
    "num_channels",
    "num_self_attention_layers",
    "num_self_attention_heads",
    "num_cross_attention_heads",
    "cross_attention_widening",
    "self_attention_widening",
)

_Config = TypeVar("_Config", bound="_Shared")


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What every model of this package has an option for."""

    embedding_channels: int
    """Width ``E`` of the embedded tokens and of the position codes."""
    position: PositionKinds = "learned"
    """``learned`` (the papers' tables) or ``fourier``, for all modalities or as ``{modality name: kind}``."""
    fourier_bands: int = 32
    """Frequencies per axis, where positions are Fourier features."""
    position_projection: bool = False
    """A bias-free ``E -> E`` map over each modality's position code."""
    dropout: float = 0.0
    """Probability of dropping an element of a self-attention branch in training."""
    drop_path: float = 0.0
    """Probability of dropping a self-attention branch for a whole example in training."""
    activation_checkpointing: str = "none"
    """``none``, or ``blocks``: keep only what passes between blocks (Perceiver IO has one: between its layers)
    and compute the rest again backward."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; ``from_dict`` gives an equal config back."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls: type[_Config], values: Mapping[str, Any]) -> _Config:
        """A config from ``to_dict``'s result. Raises ConfigError for a name that is no field or a field left out."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"{cls.__name__} has no field {unknown[0]!r}; its fields are {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"{cls.__name__}: {error}") from error

    def replace(self: _Config, **changes: Any) -> _Config:
        """The same config with some fields changed, validated again."""
        known = {field.name for field in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ConfigError(
                f"{type(self).__name__} has no field {unknown[0]!r}; its fields are {', '.join(sorted(known))}"
            )
        return replace(self, **changes)

    def position_kind(self, modality: str) -> str:
        """``learned`` or ``fourier`` for one modality. Raises ConfigError when a mapping leaves the modality out."""
        if isinstance(self.position, str):
            return self.position
        if modality not in self.position:
            raise ConfigError(
                f"position gives no kind for modality {modality!r}; it names {sorted(self.position)}: "
                f"add {modality!r} with one of {list(POSITION_KINDS)}"
            )
        return self.position[modality]

    def _check_shared(self) -> None:
        _check_positive("embedding_channels", self.embedding_channels)
        _check_positive("fourier_bands", self.fourier_bands)
        kinds = [self.position] if isinstance(self.position, str) else list(self.position.values())
        for kind in kinds:
            _check_choice("position", kind, POSITION_KINDS)
        _check_choice("activation_checkpointing", self.activation_checkpointing, CHECKPOINTING_KINDS)
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}={getattr(self, name)} is no probability below 1; use 0 <= {name} < 1")


@dataclass(frozen=True, kw_only=True)
class HiPConfig(_Shared):
    """A Hierarchical Perceiver (arXiv 2202.10890, table 1): one entry a block, the processor in the middle.

    Blocks before the processor encode, blocks after it decode; decoder block ``i`` takes a skip from encoder block
    ``n - 1 - i``, so groups and latents mirror around the processor, which has one group.

    Raises:
        ConfigError: naming the level, the value and what would fit.
    """

    num_groups: tuple[int, ...]
    """Groups ``G`` per block."""
    num_latents: tuple[int, ...]
    """Latents ``N`` per group and block."""
    num_channels: tuple[int, ...]
    """Latent width ``D`` per block."""
    num_self_attention_layers: tuple[int, ...]
    """Self-attention layers per block."""
    num_self_attention_heads: tuple[int, ...]
    """Heads of each block's self-attention layers."""
    num_cross_attention_heads: tuple[int, ...]
    """Heads of each block's cross-attention; they share out the width of the block's input."""
    cross_attention_widening: tuple[int, ...]
    """MLP hidden width over ``D`` in each block's cross-attention layer."""
    self_attention_widening: tuple[int, ...]
    """MLP hidden width over ``D`` in each block's self-attention layers."""
    regroup: str = "reshape"
    """How latents pass from one level's groups to the next: ``reshape`` or ``transpose_reshape``."""
    processor_latents_train: int | None = None
    """Processor latents drawn at random for each training example; at most one of the two may be given."""
    processor_latents_eval: int | None = None
    """Processor latents in evaluation, and rows in the processor's table."""
    mask_padding: bool = False
    """Hide group padding from attention; off, as in the original, padding is attended to as zero vectors."""

    def __post_init__(self) -> None:
        for name in _PER_BLOCK:
            object.__setattr__(self, name, _as_counts(name, getattr(self, name)))
        self._check_shared()
        self._check_levels()
        train, evaluation = _latent_counts(
            "processor_latents", self.processor_latents, self.processor_latents_train, self.processor_latents_eval
        )
        for processor_latents in (train, evaluation):
            self._check_regrouping(processor_latents)
        self._check_heads()
        _check_choice("regroup", self.regroup, REGROUP_KINDS)

    @property
    def num_blocks(self) -> int:
        """Blocks from the first encoder block to the last decoder block, the processor among them."""
        return len(self.num_groups)

    @property
    def processor(self) -> int:
        """Index of the middle block."""
        return self.num_blocks // 2

    @property
    def processor_latents(self) -> int:
        """Latents of the processor where neither override is given."""
        return self.num_latents[self.processor]

    @property
    def processor_latent_counts(self) -> tuple[int, int]:
        """Processor latents in training and in evaluation."""
        return _latent_counts(
            "processor_latents", self.processor_latents, self.processor_latents_train, self.processor_latents_eval
        )

    def input_channels(self, block: int) -> int:
        """Width of what the block attends to, which is also the inner width of its cross-attention."""
        return self.embedding_channels if block == 0 else self.num_channels[block - 1]

    @classmethod
    def variant(cls, name: str) -> HiPConfig:
        """A named geometry, with or without the ``hip_`` in front: ``HiPConfig.variant("256")``."""
        from hip_model.variants import hip_variant

        return hip_variant(name)

    def _check_levels(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in _PER_BLOCK}
        if len(set(lengths.values())) != 1:
            listing = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise ConfigError(f"every per-block field needs one entry a block, got {listing}")
        if self.num_blocks < 3 or self.num_blocks % 2 == 0:
            raise ConfigError(
                f"num_groups={self.num_groups} has {self.num_blocks} blocks; "
                "a HiP needs an odd number, at least 3, with the processor in the middle"
            )
        if self.num_groups[self.processor] != 1:
            raise ConfigError(
                f"the processor, block {self.processor} of num_groups={self.num_groups}, "
                f"has {self.num_groups[self.processor]} groups; it must have 1"
            )
        for block in range(self.processor + 1, self.num_blocks):
            partner = self.num_blocks - 1 - block
            for name in ("num_groups", "num_latents"):
                found, wanted = getattr(self, name)[block], getattr(self, name)[partner]
                if found != wanted:
                    raise ConfigError(
                        f"{name}[{block}]={found} differs from {name}[{partner}]={wanted}, "
                        f"the encoder block whose output it adds: set {name}[{block}]={wanted}"
                    )

    def _check_regrouping(self, processor_latents: int) -> None:
        latents = list(self.num_latents)
        latents[self.processor] = processor_latents
        for block in range(1, self.num_blocks):
            groups, items = self.num_groups[block], self.num_groups[block - 1] * latents[block - 1]
            if items % groups:
                fitting = sorted({max(groups, items // groups * groups), -(-items // groups) * groups})
                raise ConfigError(
                    f"block {block}: {self.num_groups[block - 1]} groups of {latents[block - 1]} latents are {items} "
                    f"items, which {groups} groups cannot share; use a multiple of {groups}, "
                    f"such as {' or '.join(map(str, fitting))}"
                )

    def _check_heads(self) -> None:
        for block in range(self.num_blocks):
            _check_divides(
                f"num_channels[{block}]", self.num_channels[block],
                f"num_self_attention_heads[{block}]", self.num_self_attention_heads[block],
            )  # fmt: skip
            heads = self.num_cross_attention_heads[block]
            _check_divides(
                f"num_channels[{block}]", self.num_channels[block], f"num_cross_attention_heads[{block}]", heads
            )
            source = "embedding_channels" if block == 0 else f"num_channels[{block - 1}]"
            _check_divides(source, self.input_channels(block), f"num_cross_attention_heads[{block}]", heads)


@dataclass(frozen=True, kw_only=True)
class PerceiverIOConfig(_Shared):
    """Perceiver IO (arXiv 2107.14795) as the HiP paper compares against it: one block, one group, all tokens at once.

    Raises:
        ConfigError: naming the field, the value and what would fit.
    """

    num_latents: int
    num_channels: int
    num_self_attention_layers: int
    num_self_attention_heads: int
    num_cross_attention_heads: int
    cross_attention_widening: int
    self_attention_widening: int
    latents_train: int | None = None
    """Latents drawn at random for each training example; at most one of the two may be given."""
    latents_eval: int | None = None
    """Latents in evaluation, and rows in the latent table."""

    def __post_init__(self) -> None:
        for name in _PER_BLOCK[1:]:
            _check_positive(name, getattr(self, name))
        self._check_shared()
        _check_divides("num_channels", self.num_channels, "num_self_attention_heads", self.num_self_attention_heads)
        for source in ("num_channels", "embedding_channels"):
            _check_divides(source, getattr(self, source), "num_cross_attention_heads", self.num_cross_attention_heads)
        _latent_counts("latents", self.num_latents, self.latents_train, self.latents_eval)

    @property
    def latent_counts(self) -> tuple[int, int]:
        """Latents in training and in evaluation."""
        return _latent_counts("latents", self.num_latents, self.latents_train, self.latents_eval)

    @classmethod
    def variant(cls, name: str) -> PerceiverIOConfig:
        """A named geometry, such as ``PerceiverIOConfig.variant("io_mini")``."""
        from hip_model.variants import perceiver_io_variant

        return perceiver_io_variant(name)


def _as_counts(name: str, values: Any) -> tuple[int, ...]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ConfigError(f"{name}={values!r} needs one whole number a block, as a tuple")
    counts = tuple(values)
    for block, count in enumerate(counts):
        lowest = 0 if name == "num_self_attention_layers" else 1
        if isinstance(count, bool) or not isinstance(count, int) or count < lowest:
            raise ConfigError(f"{name}[{block}]={count!r} must be a whole number of at least {lowest}")
    return counts


def _latent_counts(name: str, default: int, train: int | None, evaluation: int | None) -> tuple[int, int]:
    if train is not None and evaluation is not None:
        raise ConfigError(
            f"{name}_train={train} and {name}_eval={evaluation} are both given; give one, the other is {default}"
        )
    train, evaluation = (default if train is None else train), (default if evaluation is None else evaluation)
    if not 1 <= train <= evaluation:
        raise ConfigError(
            f"{name}: {train} in training and {evaluation} in evaluation; "
            f"training draws from the evaluation's rows, so 1 <= train <= eval must hold"
        )
    return train, evaluation


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is not known; use one of {', '.join(choices)}")


def _check_divides(channels_name: str, channels: int, heads_name: str, heads: int) -> None:
    if channels % heads:
        fitting = [count for count in range(1, channels + 1) if channels % count == 0]
        raise ConfigError(f"{heads_name}={heads} does not divide {channels_name}={channels}; heads that do: {fitting}")
