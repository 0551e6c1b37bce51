"""``hip demo``: the real verbs, one after the other, on clips that it makes or on the user's own media."""

from __future__ import annotations

import importlib
import shlex
import time
from contextlib import ExitStack
from pathlib import Path

from jobs.cli import verb
from pipeline.demo.findings import gather
from pipeline.demo.media import recipe_for
from pipeline.demo.options import DemoOptions
from pipeline.demo.report import write_report
from pipeline.demo.stages import Plan, Stage
from pipeline.demo.workspace import Workspace
from pipeline.errors import HipError
from pipeline.ray_session import RayOptions, ray_session


def run(options: DemoOptions) -> None:
    """Run every stage that is not done yet, then say what came out and where it is.

    Raises:
        HipError: a stage failed; its own message is above.
    """
    if options.source:
        recipe_for(options.source)  # before a folder is made for it
    workspace = Workspace(options)
    with ExitStack() as stack:
        for stage in Plan(options, workspace.folder).stages():
            if stage.name in workspace.stages:
                print(f"\n== hip {stage.name}: done before, in {workspace.stages[stage.name]:.1f} s", flush=True)
                continue
            stack.enter_context(ray_session(RayOptions(num_cpus=3)))  # one for all stages, none if all are done
            _run_stage(stage, workspace)
    _summarise(workspace)


def _run_stage(stage: Stage, workspace: Workspace) -> None:
    print(f"\n== hip {stage.verb} {shlex.join(stage.arguments)}", flush=True)
    started = time.perf_counter()
    code = importlib.import_module(f"jobs.{stage.verb}").main(list(stage.arguments))
    if code:
        error = HipError(f"the demo stopped at hip {stage.verb}; run the same command again to go on from there")
        error.exit_code = code
        raise error
    workspace.finish(stage.name, time.perf_counter() - started)


def _summarise(workspace: Workspace) -> None:
    folder: Path = workspace.folder
    findings = gather(folder)
    mlflow_command = f"mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///{folder}/runs/mlflow.db"
    page = write_report(folder, workspace.stages, findings, mlflow_command)
    print(f"\n== done in {sum(workspace.stages.values()):.0f} s")
    for name, seconds in workspace.stages.items():
        print(f"{name:<24}{seconds:6.1f} s  {findings.sentences.get(name, '')}")
    print(f"report: {page}")
    print(f"runs:   {mlflow_command}")


main = verb("demo", DemoOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
