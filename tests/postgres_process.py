"""A PostgreSQL server of Debian's on loopback, with a password, gone after the test."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_START_SECONDS = 90.0


def _program(name: str) -> str:
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"needs Debian's postgresql ({name})")
    return str(found)


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root and there is no user postgres")
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database."""
    initdb, server, prefix = _program("initdb"), _program("postgres"), _as_postgres()
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # pytest's own folders are closed to other users
    word = secrets.token_hex(8)
    (folder / "word").write_text(word)
    if prefix:
        for path in (folder, folder / "word"):
            shutil.chown(path, "postgres", "postgres")
    options = ["-D", str(folder / "data"), "-U", "hip", "--auth=scram-sha-256", f"--pwfile={folder / 'word'}"]
    subprocess.run([*prefix, initdb, *options, "--no-sync"], check=True, capture_output=True, cwd="/tmp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    command = [*prefix, server, "-D", str(folder / "data"), "-p", str(port)]
    for setting in settings:
        command += ["-c", setting]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/tmp")
    try:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield f"postgresql+psycopg://hip:{word}@127.0.0.1:{port}/postgres"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
