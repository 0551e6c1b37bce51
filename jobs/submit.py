"""``hip submit``: a verb as a job on a Ray cluster, or as a Kubernetes manifest."""

from __future__ import annotations

import sys

from jobs.cli import guarded, help_text
from pipeline.cluster.submit_options import ACTIONS, SubmitOptions
from pipeline.config import load_options
from pipeline.config.build import known_keys
from pipeline.errors import UserError, nearest
from pipeline.logs import set_up_logs

_OWN_KEYS = frozenset(key.partition(".")[0] for key in known_keys(SubmitOptions))


def main(argv: list[str] | None = None) -> int:
    """Run one action of ``hip submit``; its exit code is that of the verb on the cluster."""
    arguments = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _dispatch(arguments))


def split_arguments(arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """The action, the settings of ``hip submit`` itself, and those of the verb that it sends.

    Raises:
        UserError: an unknown action or a flag.
    """
    words = [argument for argument in arguments if "=" not in argument and not argument.startswith("~")]
    for word in words:
        if word.startswith("-"):
            raise UserError(f"unknown flag {word!r}: settings are written key=value (hip submit --help)")
    if len(words) > 1 or (words and words[0] not in ACTIONS):
        raise UserError(f"hip submit {' '.join(words)}: {nearest(words[-1], ACTIONS)}")
    settings = [argument for argument in arguments if argument not in words]
    own = [argument for argument in settings if _is_own(argument)]
    return words[0] if words else "submit", own, [argument for argument in settings if argument not in own]


def _is_own(setting: str) -> bool:
    key = setting.partition("=")[0].lstrip("+~")
    return key.partition(".")[0] in _OWN_KEYS


def _dispatch(arguments: list[str]) -> None:
    if "-h" in arguments or "--help" in arguments:
        print(help_text("submit", SubmitOptions))
        return
    action, own, overrides = split_arguments(arguments)
    options = load_options(SubmitOptions, "submit", own)
    set_up_logs()
    if action == "submit" and options.target == "kuberay":
        _kubernetes(options, overrides, arguments)
    elif action == "submit":
        _submit(options, overrides, arguments)
    else:
        _look(action, options, overrides)


def _submit(options: SubmitOptions, overrides: list[str], arguments: list[str]) -> None:
    from pipeline.cluster.submit import submit
    from pipeline.cluster.submit_follow import commands, follow, same_command

    job = submit(options, overrides)
    print(f"{'would be sent as' if options.dry_run else 'sent as'} {job.submission_id}")
    print(f"runs:  {job.entrypoint}")
    if options.dry_run:
        return
    again = same_command(arguments)
    print(f"page:  {job.url}")
    print(f"{commands(job.client, job.submission_id)}\nagain: {again}", flush=True)
    if options.follow:
        follow(job.client, job.submission_id, again)


def _kubernetes(options: SubmitOptions, overrides: list[str], arguments: list[str]) -> None:
    from pipeline.cluster.kuberay import manifest_text
    from pipeline.cluster.kuberay_apply import apply_manifest
    from pipeline.cluster.submit import prepare
    from pipeline.cluster.submit_follow import same_command

    submission = prepare(options, overrides) if options.job is not None else None
    if submission is None and overrides:
        raise UserError(f"{overrides[0]} is a setting of a verb; name the verb too, job=pretrain")
    text = manifest_text(options, submission, same_command(arguments))
    print(text, end="") if options.dry_run else apply_manifest(options.kuberay, text)


def _look(action: str, options: SubmitOptions, overrides: list[str]) -> None:
    from pipeline.cluster import submit_follow
    from pipeline.cluster.submit_client import JobsClient

    if overrides or options.target != "ray":
        raise UserError(f"hip submit {action} takes id= and address=, not {(overrides or ['target=kuberay'])[0]}")
    client = JobsClient(options.address)
    if action == "status":
        print(submit_follow.status(client, options))
    elif action == "logs":
        submit_follow.logs(client, options)
    else:
        submit_follow.stop(client, options)


if __name__ == "__main__":
    raise SystemExit(main())
