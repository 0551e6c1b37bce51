"""``hip plan``: what a pretraining needs and costs, before anything is started."""

from __future__ import annotations

from jobs.cli import verb
from jobs.initial_model import with_init_found
from pipeline.cluster.plan import PlanOptions, describe_plan, make_plan


def run(options: PlanOptions) -> None:
    """Print the plan."""
    print(describe_plan(make_plan(with_init_found(options))))


main = verb("plan", PlanOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
