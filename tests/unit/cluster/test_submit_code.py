"""Which files travel with a job: what git tracks of the packages; data, credentials and strangers are refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.cluster.submit_code import PACKAGES, choose_code, own_checkout, stage_code
from pipeline.cluster.submit_options import CodeOptions
from pipeline.cluster.submit_secrets import is_secret_file, line_with_secret
from pipeline.errors import UserError


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with every package, in git."""
    folder = tmp_path / "code"
    for package in PACKAGES:
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("")
    (folder / "conf" / "pretrain.yaml").write_text("seed: 0\n")
    (folder / "notes.md").write_text("not code\n")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    return folder


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    )


def chosen(folder: Path, *include: str, limit_mib: float = 16.0) -> tuple[str, ...]:
    return choose_code(CodeOptions(folder=str(folder), include=include, limit_mib=limit_mib)).files


def test_only_code_and_configuration_travel(checkout: Path, tmp_path: Path) -> None:
    (checkout / "pipeline" / "new.py").write_text("x = 1\n")
    (checkout / "pipeline" / "ignored.py").write_text("x = 1\n")
    (checkout / "pipeline" / "notes.txt").write_text("x\n")
    (checkout / ".gitignore").write_text("ignored.py\n__pycache__/\n")
    (checkout / "pipeline" / "__pycache__").mkdir()
    (checkout / "pipeline" / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"0")
    code = choose_code(CodeOptions(folder=str(checkout)))
    known = {*(f"{package}/__init__.py" for package in PACKAGES), "conf/pretrain.yaml"}
    assert set(code.files) == {*known, "pipeline/new.py"}
    assert code.untracked == ("pipeline/new.py",)
    stage_code(code, tmp_path / "staged")
    staged = {str(path.relative_to(tmp_path / "staged")) for path in (tmp_path / "staged").rglob("*") if path.is_file()}
    assert staged == set(code.files)


def test_changes_travel_without_a_commit_and_removed_files_do_not(checkout: Path, tmp_path: Path) -> None:
    (checkout / "conf" / "pretrain.yaml").write_text("seed: 7\n")
    (checkout / "jobs" / "__init__.py").unlink()
    code = choose_code(CodeOptions(folder=str(checkout)))
    assert "jobs/__init__.py" not in code.files
    stage_code(code, tmp_path / "staged")
    assert (tmp_path / "staged" / "conf" / "pretrain.yaml").read_text() == "seed: 7\n"


def test_without_git_the_packages_are_taken_as_they_are(checkout: Path) -> None:
    (checkout / ".git").rename(checkout.parent / "elsewhere")
    assert "conf/pretrain.yaml" in chosen(checkout)
    assert "notes.md" not in chosen(checkout)


def test_more_of_the_checkout_can_be_named(checkout: Path) -> None:
    assert "notes.md" in chosen(checkout, "notes.md")


@pytest.mark.parametrize("entry", ["../other", "/etc", "conf/../../x", "out"])
def test_nothing_outside_the_checkout_can_be_named(checkout: Path, entry: str) -> None:
    (checkout / "out").symlink_to("/etc")
    with pytest.raises(UserError, match="leaves the checkout"):
        chosen(checkout, entry)


def test_a_link_out_of_the_checkout_is_refused(checkout: Path) -> None:
    (checkout / "conf" / "hosts.yaml").symlink_to("/etc/hostname")
    _git(checkout, "add", ".")
    with pytest.raises(UserError, match=r"conf/hosts.yaml is a link to /etc/hostname"):
        chosen(checkout)


@pytest.mark.parametrize("name", ["train-00000.arrow", "clip.MP4", "model.safetensors", "mlflow.db"])
def test_data_is_refused(checkout: Path, name: str) -> None:
    (checkout / "data").mkdir()
    (checkout / "data" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"data/{name} looks like data"):
        chosen(checkout, "data")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".env", b"A=1"),
        ("credentials.json", b"{}"),
        ("key.pem", b""),
        ("settings.yaml", b"a: 1\nuri: postgresql://me:hunter2@db/x\n"),
        ("settings.yaml", b"a: 1\nkey: AKIAABCDEFGHIJKLMNOP\n"),
        ("settings.yaml", b"a: 1\n-----BEGIN RSA PRIVATE KEY-----\n"),
    ],
)
def test_credentials_are_refused_and_not_shown(checkout: Path, name: str, content: bytes) -> None:
    (checkout / "conf" / name).write_bytes(content)
    _git(checkout, "add", "-f", ".")
    with pytest.raises(UserError, match=rf"conf/{name}(, line 2,)? looks like a") as caught:
        chosen(checkout)
    assert "hunter2" not in str(caught.value)


def test_a_size_above_the_limit_names_the_largest_files(checkout: Path) -> None:
    (checkout / "conf" / "large.yaml").write_text("# " + "x" * 200_000)
    _git(checkout, "add", ".")
    with pytest.raises(
        UserError, match=r"0.2 MiB, above code.limit_mib=0.1; largest files: conf/large.yaml \(0.19 MiB\)"
    ):
        chosen(checkout, limit_mib=0.1)


def test_another_folder_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkout of this project"):
        chosen(tmp_path)


def test_this_project_itself_can_be_sent() -> None:
    code = choose_code(CodeOptions())
    assert code.folder == own_checkout()
    assert "conf/pretrain.yaml" in code.files
    assert not any(name.startswith("tests/") for name in code.files)
    assert code.bytes < 4 * 2**20


@pytest.mark.parametrize("name", ["id_rsa", ".netrc", "db-secrets.yaml", "service-account-1.json", ".env.local"])
def test_names_of_credentials(name: str) -> None:
    assert is_secret_file(name)


@pytest.mark.parametrize("name", ["submit_secrets.py", "keys.py", "environment.yaml", "tokens.yaml"])
def test_names_of_code(name: str) -> None:
    assert not is_secret_file(name)


def test_plain_addresses_hold_no_secret() -> None:
    assert line_with_secret(b"http://host:5000/path and s3://bucket/key@v1") is None
    assert line_with_secret(b"\n\nuri = 'http://u:p4ss@host'") == 3
