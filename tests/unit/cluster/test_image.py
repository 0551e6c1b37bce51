"""The Dockerfile's promises, read from its text: no Docker engine is needed for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Each stage's parent and its instructions, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current: list[tuple[str, str]] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            current = []
            found[name] = (parent, current)
        elif word:
            current.append((word, rest))
    return found


def lineage(name: str) -> list[tuple[str, str]]:
    """A stage's instructions after those of its parents."""
    parent, own = stages()[name]
    return (lineage(parent) if parent in stages() else []) + own


def test_both_targets_are_there_on_a_pinned_image() -> None:
    assert {"cpu", "cuda"} <= set(stages())
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", image)
    roots = {parent for parent, _ in stages().values()} - set(stages())
    assert roots == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_an_ordinary_user_and_holds_no_build_files(target: str) -> None:
    steps = lineage(target)
    assert [rest for word, rest in steps if word == "USER"] == ["1000:1000"]
    assert steps.index(("USER", "1000:1000")) > max(i for i, (word, _) in enumerate(steps) if word == "RUN")
    assert not any(word == "COPY" and "--from" not in rest for word, rest in steps)


@pytest.mark.parametrize("stage", ["dependencies-cpu", "dependencies-cuda"])
def test_the_dependency_layer_stays_while_the_code_changes(stage: str) -> None:
    steps = lineage(stage)
    assert [rest for word, rest in steps if word == "COPY"] == ["pyproject.toml constraints.txt ./"]
    assert "--constraint constraints.txt" in steps[-1][1]


def test_packages_are_exact() -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.\-\[\]]+==\S+( ;.*)?|#.*|", line) for line in constraints)
    assert re.search(r"pip install --no-cache-dir uv==\d", DOCKERFILE.read_text())


def test_what_is_copied_exists_and_nothing_else_is_sent_to_the_builder() -> None:
    copied = [
        source
        for _, steps in stages().values()
        for word, rest in steps
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert {"hip_model", "pipeline", "jobs", "conf", "pyproject.toml", "constraints.txt"} <= set(copied)
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / source).exists() for source in copied)
    assert any(fnmatch("conf/.env", rule.replace("**", "*")) for rule in rules[1:])


def test_the_packages_of_the_wheel_are_copied() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {rest.split()[0] for word, rest in stages()["code"][1] if word == "COPY"}
    assert wanted <= copied


def test_the_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
