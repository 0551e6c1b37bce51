"""``hip doctor``: what is wrong with this machine or cluster, with the fix beside each finding."""

from __future__ import annotations

from jobs.cli import verb
from pipeline.cluster.doctor import run_doctor
from pipeline.cluster.doctor_options import DoctorOptions


def run(options: DoctorOptions) -> None:
    """Print the report; a failed check gives exit code 5."""
    report = run_doctor(options)
    print(report.to_json() if options.format == "json" else report.to_text())
    report.check()


main = verb("doctor", DoctorOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
