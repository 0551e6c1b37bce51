"""The README's commands run as written (the demonstration at a reduced size), and links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import VERBS
from pipeline.demo.clips import make_demo_clips

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def hip(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], cwd=folder, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, f"hip {shlex.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.integration
@pytest.mark.timeout(900)  # several verbs in turn, with another test beside them
def test_the_commands_for_ones_own_data_run(tmp_path: Path) -> None:
    make_demo_clips(tmp_path / "my_clips", 16, num_images=0)
    (commands,) = blocks(README, "sh")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "hip"
        hip(arguments, tmp_path)
    assert list((tmp_path / "predictions").iterdir())


@pytest.mark.integration
@pytest.mark.timeout(900)  # several verbs in turn, with another test beside them
def test_the_demonstration_runs_and_is_done_when_run_again(tmp_path: Path) -> None:
    command = ["demo", "clips=8", "steps=6", "trials=2", f"folder={tmp_path / 'demo'}"]
    first = hip(command, tmp_path)
    assert "models:/hip-demo@candidate" in first
    page = (tmp_path / "demo" / "report.html").read_text()
    for title in ("Pretraining loss", "Reconstruction video", "Trials of the search", "Files that training never saw"):
        assert title in page
    again = hip(command, tmp_path)
    assert again.count("done before") == 7


def test_every_verb_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `hip (\w+)", README, re.MULTILINE)) >= set(VERBS) - {"promote"}
    assert "`hip promote" in README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_names_a_verb(document: Path) -> None:
    lines = [line for block in blocks(document.read_text(), r"\w*") for line in block.splitlines()]
    used = {match.group(1) for line in lines if (match := re.match(r"(?:\$ )?hip (\w+)", line))}
    assert used <= {*VERBS, "help"}
