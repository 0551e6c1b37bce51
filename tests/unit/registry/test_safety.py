from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.registry.safety import pickled_parts, refuse_foreign


def _package(folder: Path, flavours: str) -> Path:
    folder.mkdir()
    (folder / "MLmodel").write_text(f"flavors:\n{flavours}")
    return folder


def test_a_pickled_model_is_told_from_its_files_alone(tmp_path: Path) -> None:
    package = _package(tmp_path / "m", "  python_function:\n    python_model: python_model.pkl\n")
    (package / "data").mkdir()
    (package / "data" / "model.pth").write_bytes(b"never read")
    assert pickled_parts(package) == ["flavour python_function: python_model.pkl", "data/model.pth"]
    with pytest.raises(UserError, match="pickled code"):
        refuse_foreign(package, "models:/x@y", trust=False)
    refuse_foreign(package, "models:/x@y", trust=True)


def test_a_foreign_model_without_pickles_is_refused_for_its_code(tmp_path: Path) -> None:
    package = _package(tmp_path / "m", "  python_function:\n    model_code_path: model.py\n")
    assert pickled_parts(package) == []
    with pytest.raises(UserError, match="trust=true"):
        refuse_foreign(package, "models:/x@y", trust=False)


@pytest.mark.parametrize("text", ["", "flavors: 3", "[", "other: {}"])
def test_a_damaged_description_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(UserError, match=r"MLmodel|not a packaged model"):
        pickled_parts(tmp_path)
