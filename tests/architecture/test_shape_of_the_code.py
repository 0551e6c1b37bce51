"""Limits on the shape of the code, and imports that import-linter does not see."""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted(path for part in ("hip_model", "pipeline", "jobs", "bench") for path in (ROOT / part).rglob("*.py"))
LONGEST_FILE, MEDIAN_FILE, LONGEST_FUNCTION, MEDIAN_FUNCTION = 450, 180, 80, 15


def functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(f"{path.relative_to(ROOT)}:{n.name}", _lines(n)) for n in ast.walk(tree) if isinstance(n, kinds)]


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def module_level_imports(path: Path) -> set[str]:
    """Top-level packages imported when the module is; imports for type checkers only do not count."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in CODE}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}
    assert statistics.median(lengths.values()) < MEDIAN_FILE


def test_functions_fit_a_screen() -> None:
    lengths = dict(entry for path in CODE for entry in functions(path))
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
    assert statistics.median(lengths.values()) <= MEDIAN_FUNCTION


@pytest.mark.parametrize("part", ["hip_model", "bench"])
def test_what_runs_on_a_bare_gpu_machine_imports_only_torch_and_numpy(part: str) -> None:
    allowed = set(sys.stdlib_module_names) | {"torch", "numpy", "hip_model", "bench"}
    if part == "hip_model":
        allowed.add("safetensors")  # in export.py, which the package loads on first use only
    found = {
        # Device kernels, which the package loads on first use only, are written in Triton: it is on a GPU machine.
        str(path.relative_to(ROOT)): module_level_imports(path)
        - allowed
        - ({"triton"} if path.name.startswith("triton_") else set())
        for path in (ROOT / part).rglob("*.py")
    }
    assert {name: extra for name, extra in found.items() if extra} == {}


@pytest.mark.parametrize(
    ("package", "places"),
    [
        ("deepspeed", ("pipeline/train/engine", "pipeline/train/checkpoint")),
        ("mlflow", ("pipeline/tracking", "pipeline/registry")),
        ("hydra", ("pipeline/config", "jobs")),
    ],
)
def test_a_heavy_package_is_used_in_its_own_place_only(package: str, places: tuple[str, ...]) -> None:
    users = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            if any(module.split(".")[0] == package for module in modules):
                users.add(path.relative_to(ROOT).as_posix())
    assert {user for user in users if not user.startswith(places)} == set()


def test_test_files_have_unique_names() -> None:
    counts = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name: count for name, count in counts.items() if count > 1} == {}
