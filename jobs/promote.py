"""``hip promote``: move an alias to a better version through a gate, or back."""

from __future__ import annotations

from jobs.cli import verb
from pipeline.registry.options import PromoteOptions


def run(options: PromoteOptions) -> None:
    """Promote or roll back, and print the figures that decided.

    Raises:
        HipError: as the parts raise it.
    """
    from pipeline.registry.promote import promote

    promotion = promote(options)
    for entry in promotion.decision.comparisons if promotion.decision else []:
        print(f"{entry.metric:40s} {entry.shown}")
    before = f" (was version {promotion.previous})" if promotion.previous else ""
    print(f"{promotion.name}@{promotion.alias} is now version {promotion.version}{before}")


main = verb("promote", PromoteOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
