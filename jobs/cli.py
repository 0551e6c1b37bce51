"""What every verb shares: help, configuration, one clear message for a failure, and the exit code."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib.resources
import os
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

import yaml

from hip_model.errors import ConfigError, InputError
from jobs.broken_pipe import leave_quietly
from pipeline.config import compose_config, load_options
from pipeline.config.build import known_keys
from pipeline.config.compose import chosen_groups, group_choices
from pipeline.errors import HipError, UserError
from pipeline.interrupts import terminate_as_interrupt
from pipeline.logs import set_up_logs
from pipeline.storage import explain_os_error, redact

Options = TypeVar("Options")
Main = Callable[[list[str] | None], int]
_REFUSED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

# Python's last collections walk all that torch, MLflow and Ray made: one to two seconds after a command's work is done.
atexit.register(gc.freeze)


def verb(name: str, options_class: type[Options], run: Callable[[Options], None]) -> Callable[..., int]:
    """The ``main(argv)`` of one verb: it composes the options, runs, and returns the exit code of design section 3."""

    def main(argv: list[str] | None = None) -> int:
        arguments = sys.argv[1:] if argv is None else argv
        return guarded(lambda: _dispatch(name, options_class, run, arguments))

    return main


def guarded(action: Callable[[], None]) -> int:
    """Run ``action``; a failure becomes one message and its exit code (``HIP_DEBUG=1``: with traceback)."""
    try:
        with terminate_as_interrupt():
            action()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except HipError as error:
        return _explain(error, error.exit_code)
    except (ConfigError, InputError) as error:
        return _explain(error, 2)
    except BrokenPipeError:
        return leave_quietly()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REFUSED_WRITES:
            known = explain_os_error(error, str(error.filename or "a file"))
            return _explain(known, known.exit_code)
        if os.environ.get("HIP_DEBUG"):
            raise
        print(f"this is a bug or an unforeseen fault: {type(error).__name__}: {redact(str(error))}", file=sys.stderr)
        print("run it again with HIP_DEBUG=1 for the traceback", file=sys.stderr)
        return 1
    return 0


def _explain(error: Exception, exit_code: int) -> int:
    if os.environ.get("HIP_DEBUG"):
        traceback.print_exc()
    print(f"error: {redact(str(error))}", file=sys.stderr)
    return exit_code


def _dispatch(name: str, options_class: type[Options], run: Callable[[Options], None], arguments: list[str]) -> None:
    if "-h" in arguments or "--help" in arguments:
        print(help_text(name, options_class))
        return
    if "-m" in arguments or "--multirun" in arguments:
        raise UserError("multirun is not offered: hip tune searches over settings, with early stopping and one report")
    config_name, shown, overrides = _split(name, arguments)
    if shown:
        print(
            yaml.safe_dump(compose_config(config_name, overrides, known_keys(options_class)), sort_keys=False), end=""
        )
        return
    set_up_logs()
    run(load_options(options_class, config_name, overrides))


def _split(name: str, arguments: list[str]) -> tuple[str, bool, list[str]]:
    """Hydra's own flags out of the arguments: the config's name, whether to show it, and the overrides."""
    config_name, shown, overrides = name, False, []
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith(("--config-name", "--cfg", "--info")):
            flag, _, value = argument.partition("=")
            value = value or next(rest, "")
            config_name, shown = (value, shown) if flag == "--config-name" else (config_name, True)
        elif argument == "--resolve":
            continue
        elif argument.startswith("-"):
            raise UserError(f"unknown flag {argument!r}: settings are written key=value (hip {name} --help)")
        else:
            overrides.append(argument)
    return config_name, shown, overrides


def help_text(name: str, options_class: type[Options]) -> str:
    """The comment at the top of ``conf/<verb>.yaml``, the groups' choices, and every key with its default."""
    folder = importlib.resources.files("conf")
    text = folder.joinpath(f"{name}.yaml").read_text()
    lines = text.splitlines()
    intro = []
    for line in lines:
        if not line.startswith("#"):
            break
        intro.append(line.removeprefix("#").removeprefix(" "))
    groups = [f"  {group}: {', '.join(group_choices(group, name))}" for group in sorted(chosen_groups(name))]
    body = "\n".join(lines[len(intro) :])
    parts = [f"hip {name} key=value …", "\n".join(intro)]
    if groups:
        parts.append("Groups (choose with group=name):\n" + "\n".join(groups))
    parts.append("Keys and defaults:\n" + body)
    parts.append(f"--cfg job prints the composed configuration. Keys: {len(known_keys(options_class))}.")
    return "\n\n".join(parts)
