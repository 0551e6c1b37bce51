"""After a job was sent: its logs, how it ended, and how to go on."""

from __future__ import annotations

import shlex
from typing import Any

from pipeline.cluster.submit import latest_id
from pipeline.cluster.submit_client import ENDED, JobsClient
from pipeline.cluster.submit_options import SubmitOptions
from pipeline.cluster.submit_preflight import CHECK
from pipeline.errors import DataError, HipError, InfrastructureError, Interrupted, TrainingDiverged, UserError
from pipeline.storage import redact

_ERRORS: dict[int, type[HipError]] = {2: UserError, 3: DataError, 4: TrainingDiverged, 130: Interrupted}


def follow(client: JobsClient, submission_id: str, again: str) -> None:
    """Stream a job's logs to its end and report that end; ``again`` is the command that continues it.

    Raises:
        HipError: of the kind that the verb itself ended with.
        Interrupted: Ctrl-C here; the job goes on.
    """
    try:
        client.follow(submission_id)
    except KeyboardInterrupt:
        raise Interrupted(f"no longer following; the job goes on. {commands(client, submission_id)}") from None
    conclude(client.wait(submission_id, seconds=30), again)


def conclude(job: Any, again: str) -> None:
    """Say how a job ended, as the error of its exit code.

    Raises:
        HipError: it did not succeed.
    """
    status, code = job.status.value, job.driver_exit_code
    name = job.submission_id
    if status == "SUCCEEDED":
        print(f"{name} succeeded")
        return
    if status == "STOPPED":
        raise Interrupted(f"{name} was stopped; go on with:\n  {again}")
    if status not in ENDED:
        raise InfrastructureError(f"the logs of {name} ended, but it is {status}; look again with hip submit status")
    if code in (2, 3, 4):
        raise _ERRORS[code](
            f"{name} ended with exit code {code} (its message stands above); after mending it:\n  {again}"
        )
    reason = redact(" ".join((job.message or "").split()))[-300:]
    kind = _ERRORS.get(code or 0, InfrastructureError)
    raise kind(f"{name} failed (exit code {code}): {reason}; it continues where it stopped with:\n  {again}")


def commands(client: JobsClient, submission_id: str) -> str:
    """How to look at a job, and end it."""
    where = f"id={submission_id} address={client.address}"
    return f"logs: hip submit logs {where}   stop: hip submit stop {where}"


def status(client: JobsClient, options: SubmitOptions) -> str:
    """One line a job, the newest last; or everything about the one that ``id`` names."""
    jobs = client.jobs()
    if options.id is not None:
        job = jobs[latest_id(options.id, jobs)]
        rows = [("id", job.submission_id), ("status", job.status.value), ("message", job.message or ""),
                ("exit code", "" if job.driver_exit_code is None else job.driver_exit_code),
                ("command", job.entrypoint), ("page", f"{client.address}/#/jobs/{job.submission_id}")]  # fmt: skip
        return "\n".join(f"{key:<10}{redact(str(value))}" for key, value in rows if value != "")
    ours = [job for name, job in jobs.items() if name.startswith("hip-") and not name.startswith(CHECK)]
    if not ours:
        return f"no jobs of hip at {client.address}"
    ours.sort(key=lambda job: job.start_time or 0)
    return "\n".join(f"{job.status.value:<10}{job.submission_id}" for job in ours)


def logs(client: JobsClient, options: SubmitOptions) -> None:
    """Print the job's logs; with ``follow`` until it ends."""
    name = _named(client, options, "logs")
    if options.follow:
        follow(client, name, f"hip submit status id={name} address={client.address}")
    else:
        print(redact(client.logs(name)), end="")


def stop(client: JobsClient, options: SubmitOptions) -> None:
    """End the job; the verb saves its state first."""
    name = _named(client, options, "stop")
    job = client.jobs()[name]
    if job.status.value in ENDED:
        print(f"{name} had ended already: {job.status.value}")
        return
    client.stop(name)
    ended = client.wait(name, seconds=180)
    if ended.status.value not in ENDED:
        raise InfrastructureError(f"{name} is still {ended.status.value} after 180 s; look at {client.address}")
    print(f"{name} is {ended.status.value}; the same hip submit command goes on from what it saved")


def _named(client: JobsClient, options: SubmitOptions, action: str) -> str:
    if options.id is None:
        raise UserError(f"id is required: hip submit {action} id=<id> (hip submit status lists them)")
    return latest_id(options.id, client.jobs())


def same_command(arguments: list[str]) -> str:
    """The command line that was typed, to be typed again."""
    return shlex.join(["hip", "submit", *arguments])
