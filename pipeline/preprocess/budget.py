"""How many files may fail before a dataset counts as wrong (``max_failed_fraction``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import DataError
from pipeline.preprocess.ledger import LedgerRow, write_quarantine
from pipeline.preprocess.limits import REASONS, UNCOUNTED_REASONS
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.plan import Plan
from pipeline.storage import redact


@dataclass(frozen=True)
class FailureBudget:
    """Of the files that the source lists now: one that failed and was then taken out or mended is none of them."""

    shards: str
    max_failed_fraction: float
    listed: frozenset[str]  # content hashes
    files: int  # without duplicates

    @classmethod
    def of(cls, options: PreprocessOptions, plan: Plan, listed: frozenset[str]) -> FailureBudget:
        """The budget of one run."""
        files = sum(not source.duplicate_of and source.content_hash in listed for source in plan.sources)
        return cls(options.shards, options.max_failed_fraction, listed, files)

    def check(self, rows: Sequence[LedgerRow], at_least: int = 1) -> None:
        """Stop as soon as the failures (``at_least`` so many) cannot fit the budget, however well the rest goes.

        Raises:
            DataError: naming the commonest reasons.
        """
        failed = [row for row in rows if counts_as_failed(row) and row.content_hash in self.listed]
        if len(failed) >= at_least and len(failed) > self.max_failed_fraction * self.files:
            write_quarantine(self.shards, [row for row in rows if row.status == "failed"])
            raise DataError(
                f"{len(failed)} of {self.files} files failed, more than max_failed_fraction={self.max_failed_fraction} "
                f"allows: {commonest(failed)}; the list is in {redact(self.shards)}/quarantine.parquet. Mend them, "
                "take them out of the source or allow more, and run the same command again"
            )


def counts_as_failed(row: LedgerRow) -> bool:
    """Whether it was meant for the recipe and cannot be used."""
    return row.status == "failed" and row.reason not in UNCOUNTED_REASONS


def commonest(failed: Sequence[LedgerRow]) -> str:
    """The three commonest reasons, each with a file."""
    reasons = Counter(row.reason for row in failed).most_common(3)
    examples = {row.reason: row.name for row in reversed(failed)}
    return ", ".join(f"{count} {reason} ({REASONS[reason]}; {examples[reason]})" for reason, count in reasons)
