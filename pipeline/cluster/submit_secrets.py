"""What looks like a credential, so that none travels in a command, a manifest or the code."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from pipeline.errors import UserError
from pipeline.storage import redact

SECRET_FILES = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keytab", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", ".netrc", ".pgpass", ".pypirc", ".npmrc", ".htpasswd", "kubeconfig*", "credentials*",
    "*secret*.y*ml", "*secret*.json", "service-account*.json", "service_account*.json", "auth_token",
)  # fmt: skip

_SECRET_VARIABLE = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_KEY)", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    rb"AKIA[0-9A-Z]{16}"
    rb"|ASIA[0-9A-Z]{16}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    rb"|\bgh[pousr]_[A-Za-z0-9]{30,}"
    rb"|\bhf_[A-Za-z0-9]{30,}"
    rb"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    rb"|\bAIza[0-9A-Za-z_-]{35}"
    rb"|aws_secret_access_key\s*[=:]\s*['\"]?[A-Za-z0-9/+]{40}"
    rb"|(?<![a-z0-9+])[a-z][a-z0-9+]{1,20}://[^/@\s:'\"{}<>|]+:[^/@\s'\"{}<>|]+@[a-z0-9]",
    re.IGNORECASE,
)


def is_secret_file(name: str) -> bool:
    """Whether a file of this name usually holds a credential."""
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in SECRET_FILES)


def line_with_secret(content: bytes) -> int | None:
    """The number of the first line that looks like a key, a token or a password in a URI; none when there is none."""
    found = _SECRET_TEXT.search(content)
    return None if found is None else content.count(b"\n", 0, found.start()) + 1


def check_environment(variables: Mapping[str, str]) -> None:
    """Refuse a variable whose name or value is a credential: the cluster's dashboard shows every variable of a job.

    Raises:
        UserError: naming the variable, never its value.
    """
    for name, value in variables.items():
        if _SECRET_VARIABLE.search(name) or redact(value) != value or line_with_secret(value.encode()):
            raise UserError(
                f"env.{name} looks like a credential, and everyone who sees the cluster's dashboard would read it; "
                f"set it on the cluster's nodes (Kubernetes: in the secret of kuberay.secret) and give secrets=[{name}]"
            )


def check_overrides(overrides: Iterable[str]) -> None:
    """Refuse a setting that holds a credential: settings stand in the job's command, its run folder and MLflow.

    Raises:
        UserError: naming the key, never its value.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if redact(value) != value or line_with_secret(value.encode()):
            raise UserError(
                f"{key} holds a credential, which would stand in the job's command and its records; leave it out of "
                "the URI and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, on the cluster (secrets=[…] checks that they are there)"
            )
