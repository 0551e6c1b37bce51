"""The model card: what a colleague must know before using the model, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.registry.evaluations import Evaluation
from pipeline.registry.inference import Predictor
from pipeline.storage import redact


@dataclass(frozen=True)
class CardFacts:
    """What the card says beyond what the model folder itself tells."""

    name: str
    description: str
    licence: str
    source: str
    evaluations: Sequence[Evaluation] = ()
    training: Mapping[str, Any] = field(default_factory=dict)  # cost and settings, as name: value


def model_card(predictor: Predictor, facts: CardFacts) -> str:
    """The card as Markdown."""
    sections = [
        f"# {facts.name}",
        facts.description.strip(),
        _summary(predictor, facts),
        _inputs(predictor),
        _evaluations(facts.evaluations),
        _training(facts.training),
        _usage(predictor, facts.name),
        _limits(predictor),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(predictor: Predictor, facts: CardFacts) -> str:
    loaded = predictor.loaded
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    rows = {
        "architecture": type(loaded.model).__name__,
        "parameters": f"{parameters:,}",
        "labels": ", ".join(predictor.head.label_names) if predictor.head else "none (embeddings and reconstructions)",
        "data fingerprint": loaded.metadata["data"].get("fingerprint", "unknown"),
        "made from": redact(facts.source),
        "licence": facts.licence,
    }
    return _table(("", ""), rows.items())


def _inputs(predictor: Predictor) -> str:
    rows = [
        (
            spec.name,
            "×".join(map(str, spec.shape)),
            f"{spec.dtype} × {spec.num_channels}",
            spec.token_order,
            ", ".join(f"{key} {value}" for key, value in spec.sampling.items()),
        )
        for spec in predictor.specs.values()
    ]
    return "## Inputs\n\n" + _table(("modality", "shape", "values", "token order", "sampling"), rows)


def _evaluations(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "## Evaluation\n\nThis model was not evaluated before it was registered."
    rows = [
        (evaluation.task, name, f"{entry.value:.4g}", f"{entry.low:.4g} to {entry.high:.4g}", entry.count)
        for evaluation in evaluations
        for name, entry in evaluation.metrics.items()
    ]
    datasets = sorted({evaluation.dataset for evaluation in evaluations})
    table = _table(("task", "metric", "value", "interval (95 % unless set otherwise)", "units scored"), rows)
    return f"## Evaluation\n\n{table}\n\nDatasets: {', '.join(datasets)}."


def _training(training: Mapping[str, Any]) -> str:
    return "## Training\n\n" + _table(("", ""), training.items()) if training else ""


def _usage(predictor: Predictor, name: str) -> str:
    output = "labels" if predictor.head else "embeddings"
    return f"""## Use

```python
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/{name}@candidate")
model.predict(pd.DataFrame({{"media": ["clip.mp4"]}}), params={{"output": "{output}"}})
```

`media` takes paths, URIs, bytes or base64 text; a server takes base64 text, and paths below `HIP_MEDIA_ROOT` if that
is set. `mlflow.pytorch.load_model` gives the bare graph on raw tokens where that flavour was written."""


def _limits(predictor: Predictor) -> str:
    limits = [
        "It knows the kind of media that it was trained on; scores on anything else mean little.",
        "A modality that a file lacks is hidden from the model, not guessed.",
    ]
    if predictor.head:
        limits.append("It always names one of its labels, also for media that show none of them; look at the scores.")
    return "## Limits\n\n" + "\n".join(f"* {limit}" for limit in limits)


def _table(columns: Sequence[str], rows: Any) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows]
    return "\n".join(lines)
