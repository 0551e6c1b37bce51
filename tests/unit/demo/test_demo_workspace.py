"""The demonstration's folder: continued, started afresh, and never somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.demo.media import recipe_for
from pipeline.demo.options import DemoOptions
from pipeline.demo.workspace import Workspace
from pipeline.errors import InfrastructureError, UserError


def test_finished_stages_are_remembered(tmp_path: Path) -> None:
    options = DemoOptions(folder=str(tmp_path / "demo"))
    Workspace(options).finish("preprocess", 2.5)
    assert Workspace(options).stages == {"preprocess": 2.5}


def test_restart_throws_the_earlier_one_away(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    Workspace(DemoOptions(folder=str(folder))).finish("preprocess", 2.5)
    (folder / "tokens").mkdir()
    again = Workspace(DemoOptions(folder=str(folder), restart=True, steps=20))
    assert again.stages == {}
    assert not (folder / "tokens").exists()


def test_other_options_are_named(tmp_path: Path) -> None:
    Workspace(DemoOptions(folder=str(tmp_path / "demo"), steps=30))
    with pytest.raises(UserError, match=r"steps=20 \(was 30\).*restart=true"):
        Workspace(DemoOptions(folder=str(tmp_path / "demo"), steps=20))


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path, restart: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a demonstration's"):
        Workspace(DemoOptions(folder=str(tmp_path), restart=restart))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(UserError, match="is a file"):
        Workspace(DemoOptions(folder=str(tmp_path / "demo")))


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises((UserError, InfrastructureError), match="/proc/hip-demo"):
        Workspace(DemoOptions(folder="/proc/hip-demo"))


@pytest.mark.parametrize(
    ("names", "recipe"),
    [
        (["a.mp4", "b.wav"], "demo"),
        (["a.mp4", "b.png"], "demo_mixed"),
        (["a.jpg"], "image_32"),
        (["a.off"], "points_512"),
        (["a.off", "a.npz", "c.webm"], "demo"),
        (["notes.txt", "sub/a.jpg"], "image_32"),
    ],
)
def test_the_recipe_fits_the_kinds_of_file(tmp_path: Path, names: list[str], recipe: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert recipe_for(str(tmp_path)) == recipe


def test_an_empty_or_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no media \(found: nothing\)"):
        recipe_for(str(tmp_path))
    with pytest.raises(UserError, match="nowhere"):
        recipe_for(str(tmp_path / "nowhere"))
