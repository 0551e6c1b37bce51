"""``hip demo``: the real verbs, one after the other, on clips that it makes or on the user's own media."""

from __future__ import annotations

import importlib
import shutil
import time
from pathlib import Path

from jobs.cli import verb
from pipeline.demo.options import DemoOptions
from pipeline.errors import HipError
from pipeline.ray_session import RayOptions, ray_session


def run(options: DemoOptions) -> None:
    """Run every stage and print its time and where the results are.

    Raises:
        HipError: a stage failed; its own message is above.
    """
    folder = Path(options.folder).absolute()
    marker = folder / ".hip-demo"
    if options.restart and marker.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    source = _media(options, folder)
    seconds = {}
    with ray_session(RayOptions(num_cpus=3)):
        for name, arguments in _stages(options, folder, source):
            print(f"\n== hip {name} {' '.join(arguments)}", flush=True)
            started = time.perf_counter()
            code = importlib.import_module(f"jobs.{name}").main(arguments)
            if code:
                error = HipError(f"the demo stopped at hip {name} (exit code {code}); run it again to go on")
                error.exit_code = code
                raise error
            seconds[name] = time.perf_counter() - started
    print("\n" + "\n".join(f"{name:<11} {value:6.1f} s" for name, value in seconds.items()))
    print(f"reports: {folder}/runs/evaluations/*/report.html and {folder}/runs/demo-search/report.html")
    print(f"runs:    mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///{folder}/runs/mlflow.db")


def _media(options: DemoOptions, folder: Path) -> str:
    """The folder to train on; clips are made once, and a few more of the same kinds are kept apart as unseen."""
    if options.source:
        return options.source
    from pipeline.demo.clips import make_demo_clips

    for name, count, seed in (("clips", options.clips, options.seed), ("unseen", 8, options.seed + 1)):
        if not (folder / name).exists():
            make_demo_clips(folder / f".{name}", count, seed)
            (folder / f".{name}").rename(folder / name)
    return str(folder / "clips")


def _stages(options: DemoOptions, folder: Path, source: str) -> list[tuple[str, list[str]]]:
    """Each stage's verb and arguments."""
    data = [f"shards={folder}/tokens", f"storage={folder}/runs"]
    training = ["batch.global_size=16", "duration.epochs=null", "optim.learning_rate=0.002"]
    training += [f"seed={options.seed}", "figures.every_steps=0"]
    own = options.source is not None
    tolerance = ["max_failed_fraction=0.5"] if own else []
    model = f"{folder}/with-head" if not own else "demo"
    evaluation = [*data, "model=demo"]
    probe = [("evaluate", [*evaluation, "task=linear_probe", f"export={folder}/with-head"])]
    return [
        ("preprocess", [f"source={source}", f"shards={folder}/tokens", "tokens=demo", *tolerance]),
        (
            "pretrain",
            [
                *data,
                *training,
                "model=hip_micro",
                "run.name=demo",
                "scale=local_two",
                f"duration.steps={options.steps}",
                f"checkpoint.every_steps={max(1, options.steps // 2)}",
                "validation.every_steps=0",
                "metrics.every_steps=25",
            ],
        ),
        (
            "tune",
            [
                *data,
                *training,
                "model=hip_nano",
                "search=small",
                "search.name=demo-search",
                f"search.trials={options.trials}",
                f"duration.steps={max(8, options.steps // 3)}",
                "metrics.every_steps=4",
            ],
        ),
        ("evaluate", [*evaluation, "task=reconstruction", "mask.ratios=[0.85]"]),
        *([] if own else probe),
        ("register", [f"run={model}", "name=hip-demo", f"storage={folder}/runs"]),
        (
            "predict",
            [
                "model=models:/hip-demo@candidate",
                f"input={source if own else folder / 'unseen'}",
                f"output={folder}/predictions",
                f"storage={folder}/runs",
                "workers=0",
                f"kind={'embeddings' if own else 'labels'}",
            ],
        ),
    ]


main = verb("demo", DemoOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
