"""The report of a search: one HTML page with its pictures, the table as CSV, everything as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from html import escape

from pipeline import storage
from pipeline.evaluate.figures import Picture
from pipeline.evaluate.report import html_figure, html_table
from pipeline.tune.figures import cost_picture, curve_picture, importance_picture, parallel_picture
from pipeline.tune.importance import FEWEST_TRIALS, importances
from pipeline.tune.options import TuneOptions
from pipeline.tune.results import REJECTED, SearchResult, TrialResult, pareto_front, table_rows

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #616e7c; --line: #d9dee4; --page: #fff; --box: #f3f5f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #3e4c59; --page: #161b20;
  --box: #222a31; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 66rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.sub, figcaption { color: var(--soft); } table { border-collapse: collapse; margin: .6rem 0; font-size: 13px; }
th, td { padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; text-align: right; } .scroll { overflow-x: auto; }
figure { margin: 1rem 0; } img { max-width: 100%; background: #fff; border-radius: 4px; }
pre { background: var(--box); padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 4px; }
"""


def write_search_report(
    options: TuneOptions,
    result: SearchResult,
    target: float | None,
    notes: Sequence[str],
    extra: Sequence[Picture] = (),
) -> str:
    """Write ``trials.csv``, ``report.json``, the pictures and ``report.html`` below the search's folder, the page last.

    Returns the location of the page.
    """
    pictures = [*_pictures(options, result), *extra]
    for picture in pictures:
        storage.write_atomic(storage.join(result.folder, "figures", f"{picture.name}.png"), picture.png)
    storage.write_atomic(storage.join(result.folder, "trials.csv"), _csv(result.trials).encode())
    storage.write_atomic(storage.join(result.folder, "report.json"), _json(result, target, notes).encode())
    page = storage.join(result.folder, "report.html")
    storage.write_atomic(page, _html(options, result, target, notes, pictures).encode())
    return page


def _pictures(options: TuneOptions, result: SearchResult) -> list[Picture]:
    measured = [trial for trial in result.trials if trial.is_measured]
    if not measured:
        return []
    found = [cost_picture(measured, result.metric, result.mode), curve_picture(measured, result.metric, result.mode)]
    ranked = importances(measured, options.seed)
    if ranked:
        found.append(importance_picture(ranked))
    parallel = parallel_picture(measured, result.metric, result.mode)
    return [*found, parallel] if parallel else found


def _html(
    options: TuneOptions,
    result: SearchResult,
    target: float | None,
    notes: Sequence[str],
    pictures: Sequence[Picture],
) -> str:
    title = f"Search {result.name}"
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p class='sub'>{escape(result.summary())}. {escape(_budget_sentence(options, target))}</p>",
        *[f"<p>{escape(note)}</p>" for note in notes],
        *_winner(result),
    ]
    parts += [html_figure(picture) for picture in pictures]
    if sum(trial.is_measured for trial in result.trials) < FEWEST_TRIALS:
        parts.append(f"<p class='sub'>Importances need {FEWEST_TRIALS} measured trials.</p>")
    front = pareto_front(result.trials, result.mode)
    parts += ["<h2>Pareto front</h2>", html_table(("trial", result.metric, "training GFLOP", "settings"), [
        (trial.candidate.name, trial.value, trial.candidate.costs.training_flops / 1e9, trial.candidate.label)
        for trial in front if trial.candidate.costs
    ])]  # fmt: skip
    rejected = [trial for trial in result.trials if trial.status == REJECTED]
    if rejected:
        rows = [(trial.candidate.name, trial.candidate.label, trial.reason) for trial in rejected]
        parts += ["<h2>Rejected before they started</h2>", html_table(("point", "settings", "why"), rows)]
    columns, table = table_rows(result.trials)
    parts += ["<h2>All candidates</h2>", html_table(columns, [[row[name] for name in columns] for row in table])]
    return "\n".join([*parts, "</html>"])


def _winner(result: SearchResult) -> list[str]:
    best = result.best
    if best is None:
        return ["<h2>No winner</h2><p>No trial reported the metric; the table below says why.</p>"]
    text = f"{best.candidate.name}: {result.metric} {best.value:.5g} after {best.step} steps ({best.candidate.label})"
    return ["<h2>Winner</h2>", f"<p>{escape(text)}</p>", f"<pre>{escape(result.command or '')}</pre>"]


def _budget_sentence(options: TuneOptions, target: float | None) -> str:
    search = options.search
    if target is None:
        return "Candidates are compared as they are: they differ in cost."
    unit = {"parameters": "parameters", "flops": "training FLOPs a sample", "step_time": "seconds a step"}[
        search.budget
    ]
    return f"Every candidate was solved to {target:,.4g} {unit} within {search.budget_tolerance:.0%}."


def _csv(trials: Sequence[TrialResult]) -> str:
    columns, rows = table_rows(trials)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _json(result: SearchResult, target: float | None, notes: Sequence[str]) -> str:
    content = {
        "name": result.name,
        "metric": result.metric,
        "mode": result.mode,
        "budget_target": target,
        "notes": list(notes),
        "command": result.command,
        "best": result.best.candidate.name if result.best else None,
        "trials": [
            {
                **trial.candidate.to_dict(),
                "name": trial.candidate.name,
                "status": trial.status,
                "value": trial.value if trial.is_measured else None,
                "step": trial.step,
                "seconds": trial.seconds,
                "reason": trial.reason,
                "run_folder": storage.redact(trial.run_folder or "") or None,
                "curve": trial.curve,
            }
            for trial in result.trials
        ],
    }
    return json.dumps(content, indent=1, default=str)
