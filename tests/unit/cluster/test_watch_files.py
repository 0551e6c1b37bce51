"""The dashboard and the alerts name only metrics and labels that the code exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.tracking.prometheus import METRICS, PREFIX

DEPLOY = Path(__file__).parents[3] / "deploy"
NAME = re.compile(r"\bray_[a-z0-9_]+")
OUR_NAME = re.compile(r"\bray_hip_[a-z0-9_]+")
SELECTED = re.compile(r"\bray_(hip_[a-z0-9_]+)\{(\w+)")
GROUPED = re.compile(r"by \(([\w, ]+)\) \(+(?:\w+\()?ray_(hip_[a-z0-9_]+)")


def dashboard() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana" / "hip.json").read_text()))


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [*panels, *[rule["expr"] for rule in alerts()]]


def ray_names() -> set[str]:
    """Ray's own metrics that the files use; a test with a running Ray looks for them there."""
    return {name for text in expressions() for name in NAME.findall(text) if not OUR_NAME.match(name)}


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_is_exported_with_the_labels_that_are_used(expression: str) -> None:
    names = OUR_NAME.findall(expression)
    assert names or NAME.findall(expression)
    assert {name.removeprefix(PREFIX) for name in names} <= METRICS.keys()
    for name, label in SELECTED.findall(expression):
        assert label in METRICS[name].labels
    for labels, name in GROUPED.findall(expression):
        assert set(labels.split(", ")) <= set(METRICS[name].labels)


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = {name for panel in dashboard()["panels"] for target in panel.get("targets", [])
             for name in OUR_NAME.findall(target["expr"])}  # fmt: skip
    assert shown == {PREFIX + name for name in METRICS}


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23


def test_alerts_cover_hang_divergence_starvation_and_full_disk_and_say_what_to_do() -> None:
    names = {rule["alert"] for rule in alerts()}
    assert {"HipTrainingHangs", "HipTrainingDiverges", "HipTrainingStarves", "HipDiskFull"} <= names
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool of Debian's prometheus package")
def test_alerts_fire_when_they_should() -> None:
    folder = DEPLOY / "prometheus"
    for arguments in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
