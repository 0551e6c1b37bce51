"""One self-contained page of a demonstration: times, figures, pictures."""

from __future__ import annotations

from html import escape
from pathlib import Path

from pipeline.demo.findings import DemoFindings
from pipeline.evaluate.figures import Picture, curves
from pipeline.evaluate.report import html_figure, html_page, html_table
from pipeline.storage import write_atomic

_CAPTIONS = {
    "reconstruction": "Input, what the model saw (the rest is grey), and what it filled in.",
    "positions": "Similarity of the learned position embeddings; before training it is noise.",
    "confusion": "The linear probe on examples that neither pretraining nor the probe was fitted on.",
    "cost": "Loss against training FLOPs of the search's trials.",
    "curves": "Learning curves of the search's trials.",
}


def write_report(folder: Path, seconds: dict[str, float], findings: DemoFindings, mlflow_command: str) -> Path:
    """Write ``report.html`` below the demonstration's folder."""
    stages = [(name, round(spent, 1), findings.sentences.get(name, "")) for name, spent in seconds.items()]
    parts = [html_table(("stage", "seconds", "result"), stages)]
    if findings.loss:
        steps, losses = zip(*findings.loss, strict=True)
        parts.append(html_figure(curves("loss", "Pretraining loss", {"loss": (steps, losses)}, ("step", "loss"))))
    parts += [html_figure(_picture(path)) for path in findings.pictures]
    parts += ["<h2>Trials of the search</h2>", html_table(("trial", "ended", "loss", "steps"), findings.trials)]
    if findings.predictions:
        parts += ["<h2>Files that training never saw</h2>"]
        parts += [html_table(("file", "class", "predicted"), findings.predictions)]
    parts += ["<h2>The runs in MLflow</h2>", f"<p><code>{escape(mlflow_command)}</code></p>"]
    page = folder / "report.html"
    write_atomic(str(page), html_page("From raw clips to a registered model", parts).encode())
    return page


def _picture(path: Path) -> Picture:
    caption = next((text for start, text in _CAPTIONS.items() if path.stem.startswith(start)), "")
    return Picture(path.stem, path.stem.replace("_", " ").capitalize(), path.read_bytes(), caption)
