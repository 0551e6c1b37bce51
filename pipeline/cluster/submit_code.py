"""The code that travels with a job: the packages and ``conf/``, as git sees them, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster.submit_options import CodeOptions
from pipeline.cluster.submit_secrets import is_secret_file, line_with_secret
from pipeline.errors import UserError

PACKAGES = ("hip_model", "pipeline", "jobs", "conf")
DATA_SUFFIXES = (
    ".arrow", ".parquet", ".feather", ".npy", ".npz", ".h5", ".hdf5", ".tfrecord", ".safetensors", ".pt", ".pth",
    ".ckpt", ".bin", ".onnx", ".db", ".sqlite", ".mp4", ".mkv", ".avi", ".mov", ".webm", ".wav", ".mp3", ".flac",
    ".aac", ".ogg", ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".zip", ".tar", ".gz", ".tgz", ".xz",
    ".bz2", ".zst", ".7z", ".ply", ".off", ".pcd", ".las",
)  # fmt: skip
_MIB = 2**20


@dataclass(frozen=True)
class CodeSet:
    """The chosen files, relative to ``folder``."""

    folder: Path
    files: tuple[str, ...]
    bytes: int
    untracked: tuple[str, ...]  # those that git does not know yet


def own_checkout() -> Path:
    """The folder that this ``pipeline`` was imported from."""
    return Path(__file__).resolve().parents[2]


def choose_code(options: CodeOptions) -> CodeSet:
    """Choose the files and refuse what must not travel.

    Raises:
        UserError: a dataset, a credential, a path outside the checkout, or more than ``code.limit_mib``.
    """
    folder = Path(options.folder).expanduser().resolve() if options.folder else own_checkout()
    missing = [package for package in PACKAGES if not (folder / package).is_dir()]
    if missing:
        raise UserError(f"code.folder={folder} is no checkout of this project: it has no {', '.join(missing)}")
    for entry in options.include:
        _check_inside(folder, entry)
    wanted = (*PACKAGES, *(os.path.normpath(entry) for entry in options.include))
    known = _git_files(folder, wanted)
    files = sorted(set(_walk(folder, wanted) if known is None else known))
    files = [name for name in files if not _is_litter(name)]
    sizes = {name: _checked_size(folder, name) for name in files}
    total = sum(sizes.values())
    if total > options.limit_mib * _MIB:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise UserError(
            f"the code to send is {total / _MIB:.1f} MiB, above code.limit_mib={options.limit_mib:g}; largest files: "
            + ", ".join(f"{name} ({sizes[name] / _MIB:.2f} MiB)" for name in largest)
            + "; take them out of code.include (data belongs in storage), or raise the limit"
        )
    return CodeSet(folder, tuple(files), total, () if known is None else _new_code(folder))


def stage_code(code: CodeSet, destination: Path) -> None:
    """Copy the files below ``destination``, for Ray to pack."""
    for name in code.files:
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(code.folder / name, target)


def _check_inside(folder: Path, entry: str) -> None:
    path = folder / entry
    if Path(entry).is_absolute() or ".." in Path(entry).parts or not path.resolve().is_relative_to(folder):
        raise UserError(f"code.include={entry} leaves the checkout {folder}; name files and folders inside it")
    if not path.exists():
        raise UserError(f"code.include={entry} is not in {folder}")


def _checked_size(folder: Path, name: str) -> int:
    """The size of one file that may travel."""
    path = folder / name
    if not path.resolve().is_relative_to(folder):
        raise UserError(f"{name} is a link to {path.resolve()}, outside the checkout; it is not sent. Remove the link")
    if is_secret_file(path.name):
        raise UserError(
            f"{name} looks like a credential by its name; everyone on the cluster could read it. Take it out of the "
            "code folders, and set what it holds as variables on the cluster (secrets=[NAME])"
        )
    if path.suffix.lower() in DATA_SUFFIXES:
        raise UserError(
            f"{name} looks like data ({path.suffix}, {path.stat().st_size / _MIB:.2f} MiB); datasets and models are "
            "not sent with the code: put it into storage that the cluster sees and name that place"
        )
    content = path.read_bytes()
    line = line_with_secret(content)
    if line is not None:
        raise UserError(
            f"{name}, line {line}, looks like a key, token or password; take it out before the code is sent"
        )
    return len(content)


def _git(folder: Path, *arguments: str) -> list[str] | None:
    """The names that a git command lists; none where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return None if done.returncode else [name for name in done.stdout.decode().split("\0") if name]


def _git_files(folder: Path, wanted: Sequence[str]) -> list[str] | None:
    """What git tracks, as it is in the folder now, and new code; an entry that git does not know is taken whole."""
    tracked = _git(folder, "ls-files", "-z", "--cached", "--", *wanted)
    if not tracked:
        return None
    unknown = [entry for entry in wanted if not any(name == entry or name.startswith(f"{entry}/") for name in tracked)]
    return [name for name in tracked if (folder / name).is_file()] + [*_new_code(folder), *_walk(folder, unknown)]


def _new_code(folder: Path) -> tuple[str, ...]:
    """Modules and configuration that were not added to git yet and are not ignored: the rest may import them."""
    names = _git(folder, "ls-files", "-z", "--others", "--exclude-standard", "--", *PACKAGES) or []
    return tuple(sorted(name for name in names if name.endswith((".py", ".yaml"))))


def _walk(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Without git: every file below the named folders."""
    found = []
    for entry in wanted:
        paths = [folder / entry] if (folder / entry).is_file() else sorted((folder / entry).rglob("*"))
        found += [str(path.relative_to(folder)) for path in paths if path.is_file()]
    return found


def _is_litter(name: str) -> bool:
    return "__pycache__/" in name or name.endswith((".pyc", ".pyo"))
