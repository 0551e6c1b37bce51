"""Where a run stands: everything a resume needs besides weights and moments."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import UserError

FORMAT_VERSION = 1


@dataclass
class TrainerState:
    """Position and history of a run. Position in the data is the one number ``examples_consumed``."""

    seed: int
    step: int = 0  # optimizer steps tried, skipped ones included
    examples_consumed: int = 0
    optimizer_steps: int = 0  # updates applied, Adam's count
    engine: dict[str, float] = field(default_factory=dict)  # the engine's own numbers (fp16 loss scale)
    hooks: dict[str, dict[str, Any]] = field(default_factory=dict)  # each hook's memory, by its name
    options: dict[str, Any] = field(default_factory=dict)  # resolved configuration
    config_hash: str = ""
    fingerprint: str = ""  # of the dataset
    code_version: str = ""
    workers: int = 1
    format_version: int = FORMAT_VERSION

    def to_json(self) -> bytes:
        """As the content of ``trainer_state.json``."""
        return json.dumps(asdict(self), indent=1, default=str).encode()

    @classmethod
    def from_json(cls, content: bytes) -> TrainerState:
        """Read back ``to_json``.

        Raises:
            UserError: written by a newer version.
        """
        values = json.loads(content)
        if values.get("format_version", 0) > FORMAT_VERSION:
            raise UserError(
                f"trainer_state.json has format {values['format_version']}, this version reads up to {FORMAT_VERSION}; "
                "install the version that wrote it"
            )
        return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})
