"""``hip register``: package a trained model and add it to the registry."""

from __future__ import annotations

from shlex import quote

from jobs.cli import verb
from pipeline.registry.options import RegisterOptions
from pipeline.storage import redact


def run(options: RegisterOptions) -> None:
    """Register and print how to load the new version.

    Raises:
        HipError: as the parts raise it.
    """
    from pipeline.registry.register import register

    version = register(options)
    print(f"{version.name} version {version.version} is registered as {version.uri}")
    model, storage = (quote(word) for word in (f"model={version.uri}", f"storage={redact(options.storage)}"))
    print(f"try it:   hip predict {model} input=<file or folder> {storage}")
    print(f"serve it: mlflow models serve --env-manager local -m {quote(version.uri)}")


main = verb("register", RegisterOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
