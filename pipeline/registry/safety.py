"""Does loading a packaged model run someone's pickled code? Found out from the files, without loading anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

_PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".pth", ".pt", ".bin", ".ckpt", ".joblib", ".dill"})


def read_description(model_folder: Path) -> dict[str, Any]:
    """The ``MLmodel`` file of a packaged model.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        description = yaml.safe_load((model_folder / "MLmodel").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{model_folder} is not a packaged model: {error}") from error
    if not isinstance(description, dict) or not isinstance(description.get("flavors"), dict):
        raise UserError(f"{model_folder / 'MLmodel'} names no flavours; the package is damaged")
    return description


def pickled_parts(model_folder: Path) -> list[str]:
    """What in a packaged model would be unpickled when it is loaded; empty when nothing would."""
    found = []
    for name, flavour in read_description(model_folder)["flavors"].items():
        if isinstance(flavour, dict) and flavour.get("python_model"):
            found.append(f"flavour {name}: {flavour['python_model']}")
    for path in sorted(model_folder.rglob("*")):
        if path.suffix.lower() in _PICKLE_SUFFIXES and path.is_file():
            found.append(str(path.relative_to(model_folder)))
    return list(dict.fromkeys(found))


def refuse_foreign(model_folder: Path, what: str, trust: bool) -> None:
    """Refuse a package that ``hip register`` did not make, unless trusted: loading it would run the maker's code.

    Raises:
        UserError: it is foreign and not trusted.
    """
    parts = pickled_parts(model_folder)
    if not trust:
        why = f"it holds pickled code ({', '.join(parts)})" if parts else "loading it runs the code packaged with it"
        raise UserError(f"{what} was not made by hip register and {why}; trust=true loads it all the same")
