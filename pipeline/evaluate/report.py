"""One self-contained HTML page and one JSON file an evaluation: numbers with intervals, tables and pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from pipeline import storage
from pipeline.evaluate.figures import Picture
from pipeline.evaluate.resampling import Estimate, resamples_to_bytes

RESAMPLES = "resamples.npz"
"""Every metric on each resample, beside the report: two models scored on the same files are compared by them."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #616e7c; --line: #d9dee4; --page: #fff; --accent: #2a6f97; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #3e4c59; --page: #161b20; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.sub, figcaption { color: var(--soft); } table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; text-align: right; } .scroll { overflow-x: auto; }
figure { margin: 1rem 0; } img { max-width: 100%; background: #fff; border-radius: 4px; }
code { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Table:
    """Rows of text or numbers under a title."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True)
class Findings:
    """What one task produced, before it is written anywhere."""

    metrics: dict[str, Estimate]
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # sentences that a reader must know to read the numbers right


@dataclass(frozen=True)
class EvaluationReport:
    """A finished evaluation."""

    task: str
    metrics: dict[str, Estimate]
    figures: dict[str, str]  # name -> location of the PNG
    html_path: str
    json_path: str
    folder: str
    tracking_run_id: str | None = None
    export: str | None = None  # folder of the model with its fitted head

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task,
            "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "figures": self.figures,
            "export": self.export,
        }


def write_report(
    folder: str, task: str, subject: Mapping[str, Any], findings: Findings, export: str | None = None
) -> EvaluationReport:
    """Write pictures, ``resamples.npz``, ``report.json`` and ``report.html`` below ``folder`` (the HTML last)."""
    figures = {}
    for picture in findings.pictures:
        figures[picture.name] = storage.join(folder, "figures", f"{picture.name}.png")
        storage.write_atomic(figures[picture.name], picture.png)
    report = EvaluationReport(
        task=task,
        metrics=findings.metrics,
        figures=figures,
        html_path=storage.join(folder, "report.html"),
        json_path=storage.join(folder, "report.json"),
        folder=folder,
        export=export,
    )
    tables = [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in findings.tables]
    content = {**report.to_dict(), "subject": dict(subject), "tables": tables, "notes": findings.notes}
    storage.write_atomic(storage.join(folder, RESAMPLES), resamples_to_bytes(findings.metrics))
    storage.write_atomic(report.json_path, json.dumps(content, indent=1, default=str).encode())
    page = render_html(f"{task} of {subject.get('model', 'a model')}", subject, findings)
    storage.write_atomic(report.html_path, page.encode())
    return report


def read_report(folder: str) -> EvaluationReport | None:
    """What ``write_report`` wrote there; none where nothing is."""
    place = storage.join(folder, "report.json")
    if not storage.exists(place):
        return None
    content = json.loads(storage.read_bytes(place))
    return EvaluationReport(
        task=content["task"],
        metrics={name: Estimate(**values) for name, values in content["metrics"].items()},
        figures=content["figures"],
        html_path=storage.join(folder, "report.html"),
        json_path=place,
        folder=folder,
        export=content["export"],
    )


def render_html(title: str, subject: Mapping[str, Any], findings: Findings) -> str:
    """The whole page; every string that came from data is escaped, pictures are inline."""
    parts = [
        _notes(findings.notes),
        "<h2>Metrics</h2>",
        html_table(
            ("metric", "value", "interval", "units"),
            [
                (name, f"{entry.value:.4g}", f"{entry.low:.4g} – {entry.high:.4g}", entry.count)
                for name, entry in findings.metrics.items()
            ],
        ),
    ]
    for table in findings.tables:
        parts += [f"<h2>{escape(table.title)}</h2>", html_table(table.columns, table.rows)]
    parts += [html_figure(picture) for picture in findings.pictures]
    parts += ["<h2>What was evaluated</h2>", html_table(("", ""), list(subject.items()))]
    return html_page(title, parts)


def html_page(title: str, parts: Sequence[str]) -> str:
    """The parts of a page, already HTML, under a title and one style."""
    head = (
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
    )
    return "\n".join([*head, *parts, "</html>"])


def html_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers are aligned right."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def html_figure(picture: Picture) -> str:
    """A picture with its title and caption."""
    data = base64.b64encode(picture.png).decode()
    return (
        f"<h2>{escape(picture.title)}</h2><figure><img alt='{escape(picture.title, quote=True)}' "
        f"src='data:image/png;base64,{data}'><figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"<td class='number'>{value:.4g}</td>"
    if isinstance(value, int):
        return f"<td class='number'>{value}</td>"
    return f"<td>{escape(str(value))}</td>"


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p class='sub'>{escape(note)}</p>" for note in notes)
