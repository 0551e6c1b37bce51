"""The code that a registered model carries: exactly the modules that serving reaches, under a name of their own.

The modules are copied below one package named after their content (``hip_served_<digest>``) and their imports of one
another are rewritten to it. So a served model needs no checkout, does not clash with a user's own ``pipeline`` package,
and two models with different code can be loaded by one process.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

_ROOTS = ("hip_model", "pipeline")
_ENTRY = "pipeline.registry.serve"
_ALWAYS_REQUIRED = ("mlflow", "numpy", "pandas", "safetensors", "torch")


@dataclass(frozen=True)
class CodeBundle:
    """A package of code: its unique name, its files by path inside it, and the distributions they import."""

    package: str
    files: dict[str, str]
    requirements: list[str]

    @property
    def entry_module(self) -> str:
        """Where the served model's class is."""
        return f"{self.package}.{_ENTRY}"

    def write(self, folder: Path) -> Path:
        """Write the package below ``folder`` and return its path."""
        for name, text in self.files.items():
            path = folder / self.package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return folder / self.package


def build_bundle() -> CodeBundle:
    """Collect the serving code of the installed project.

    Raises:
        RuntimeError: a module imports ours by ``import x.y``, which cannot be renamed safely.
    """
    sources: dict[str, tuple[Path, str]] = {}
    external: set[str] = set()
    waiting = [_ENTRY]
    while waiting:
        module = waiting.pop()
        if module in sources:
            continue
        path = _module_file(module)
        if path is None:  # a name imported from a module, not a module
            continue
        sources[module] = path, path.read_text(encoding="utf-8")
        waiting += [module.rpartition(".")[0]] if "." in module else []
        ours, others = _imports(module, path, sources[module][1])
        waiting += ours
        external |= others
    digest = hashlib.sha256("".join(f"{name}\n{sources[name][1]}" for name in sorted(sources)).encode()).hexdigest()
    package = f"hip_served_{digest[:10]}"
    files = {"__init__.py": '"""Serving code carried by a registered model."""\n'}
    for module, (path, text) in sources.items():
        relative = module.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        files[relative] = _rename(text, package)
    return CodeBundle(package, files, _requirements(external))


def _module_file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imports(module: str, path: Path, text: str) -> tuple[list[str], set[str]]:
    """Our modules that ``text`` imports anywhere in it, and the top-level names of everyone else's."""
    ours: list[str] = []
    others: set[str] = set()
    for node in _import_nodes(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            if any(name.partition(".")[0] in _ROOTS for name in names):
                raise RuntimeError(f"{path}:{node.lineno}: write 'from … import …' so that serving can rename it")
            others |= {name.partition(".")[0] for name in names}
        elif node.level == 0 and node.module:
            if node.module.partition(".")[0] in _ROOTS:
                ours += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                others.add(node.module.partition(".")[0])
        else:
            raise RuntimeError(f"{path}:{node.lineno}: relative imports cannot be followed; name the module in full")
    return ours, others - set(sys.stdlib_module_names)


def _import_nodes(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """Imports that run: those under ``if TYPE_CHECKING`` do not."""
    found: list[ast.Import | ast.ImportFrom] = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found.append(child)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            found += _import_nodes(child)
    return found


def _rename(text: str, package: str) -> str:
    """``from pipeline.x import y`` becomes ``from <package>.pipeline.x import y``."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in _ROOTS:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {node.module}", f"from {package}.{node.module}", 1)
    return "".join(lines)


def _requirements(modules: set[str]) -> list[str]:
    """The installed distributions that provide ``modules``, pinned to their public versions."""
    provided = importlib.metadata.packages_distributions()
    names = {distribution for module in modules for distribution in provided.get(module, [])[:1]}
    versions = {name.lower(): importlib.metadata.version(name) for name in {*names, *_ALWAYS_REQUIRED}}
    return [f"{name}=={version.partition('+')[0]}" for name, version in sorted(versions.items())]
