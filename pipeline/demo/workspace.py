"""The demonstration's folder: whose it is, what was asked of it, and which stages are done."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.demo.options import DemoOptions
from pipeline.errors import UserError
from pipeline.storage import explain_os_error, write_atomic

_RECORD = ".hip-demo.json"
_NEEDED_GIB = 0.5  # a demonstration with the default options leaves 60 MB; Ray's own files come on top


class Workspace:
    """A demonstration's folder and its record of finished stages."""

    def __init__(self, options: DemoOptions) -> None:
        """Open or make the folder.

        Raises:
            UserError: the folder holds something else, or a demonstration with other options, or cannot be written.
            InfrastructureError: the disk is full.
        """
        self.folder = Path(options.folder).absolute()
        self._record = self.folder / _RECORD
        self._asked = _asked(options)
        if options.restart and self._record.is_file():
            shutil.rmtree(self.folder)
        self._check_owner()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_space()
            self.stages = self._continue(self._asked)
            self._write()
        except OSError as error:
            raise explain_os_error(error, str(self.folder)) from error

    def finish(self, stage: str, seconds: float) -> None:
        """Record that a stage is done."""
        self.stages[stage] = seconds
        self._write()

    def _check_owner(self) -> None:
        if self.folder.exists() and not self._record.is_file():
            if not self.folder.is_dir():
                raise UserError(f"folder={self.folder} is a file; choose another folder=")
            if any(self.folder.iterdir()):
                raise UserError(f"folder={self.folder} holds files that are not a demonstration's; choose another one")

    def _check_space(self) -> None:
        free_gib = shutil.disk_usage(self.folder).free / 2**30
        if free_gib < _NEEDED_GIB:
            raise UserError(
                f"{self.folder}: {free_gib:.2f} GiB free, the demonstration needs {_NEEDED_GIB}; choose another folder="
            )

    def _continue(self, asked: dict[str, Any]) -> dict[str, float]:
        """The seconds of the stages that an earlier call with the same options finished."""
        if not self._record.is_file():
            return {}
        content = json.loads(self._record.read_text())
        earlier = content["options"]
        other = [f"{key}={asked[key]} (was {earlier.get(key)})" for key in asked if asked[key] != earlier.get(key)]
        if other:
            raise UserError(
                f"{self.folder} holds a demonstration with other options: {', '.join(other)}; "
                "add restart=true to throw it away, or choose another folder="
            )
        return dict(content["stages"])

    def _write(self) -> None:
        content = {"options": self._asked, "stages": self.stages}
        write_atomic(str(self._record), json.dumps(content, indent=1).encode())


def _asked(options: DemoOptions) -> dict[str, Any]:
    return {key: value for key, value in asdict(options).items() if key not in ("folder", "restart")}
