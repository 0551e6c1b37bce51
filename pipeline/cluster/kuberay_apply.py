"""Hands a manifest to Kubernetes through kubectl, after looking whether its secret and KubeRay are there."""

from __future__ import annotations

import subprocess

import yaml

from pipeline.cluster.kuberay_options import KubeRayOptions
from pipeline.errors import InfrastructureError, UserError


def apply_manifest(options: KubeRayOptions, text: str) -> None:
    """Apply the manifest.

    Raises:
        UserError: no kubectl, no KubeRay on the cluster, or a secret or one of its keys is missing.
        InfrastructureError: the Kubernetes cluster does not answer.
    """
    content = yaml.safe_load(text)
    if content["apiVersion"].startswith("ray.io/") and not _kubectl("get", "crd", f"{content['kind'].lower()}s.ray.io"):
        raise UserError(
            "this Kubernetes cluster has no KubeRay 1.5 or newer; install its operator first (docs/cluster.md)"
        )
    wanted = referenced_keys(content)
    if wanted:
        _check_secret(options, wanted)
    print(_kubectl("apply", "-f", "-", given=text), end="")
    kind, name = content["kind"].lower(), content["metadata"]["name"]
    print(f"watch: kubectl -n {options.namespace} get {kind} {name} -w")


def referenced_keys(content: object) -> list[str]:
    """Every key of a secret that the manifest refers to."""
    if isinstance(content, dict):
        own = [content["secretKeyRef"]["key"]] if "secretKeyRef" in content else []
        return sorted({*own, *(key for value in content.values() for key in referenced_keys(value))})
    if isinstance(content, list):
        return sorted({key for value in content for key in referenced_keys(value)})
    return []


def _check_secret(options: KubeRayOptions, wanted: list[str]) -> None:
    """Names only: the values are not asked for."""
    template = "go-template={{range $key, $value := .data}}{{$key}}\n{{end}}"
    found = _kubectl("-n", options.namespace, "get", "secret", options.secret, "-o", template)
    missing = [key for key in wanted if key not in found.split()]
    if missing:
        literals = " ".join(f"--from-literal={key}=…" for key in wanted)
        raise UserError(
            f"the secret {options.secret} in namespace {options.namespace} has no {', '.join(missing)}; make it: "
            f"kubectl -n {options.namespace} create secret generic {options.secret} {literals}"
        )


def _kubectl(*arguments: str, given: str | None = None) -> str:
    """The output of a kubectl command; empty where what it asks for does not exist."""
    try:
        done = subprocess.run(
            ["kubectl", "--request-timeout=30s", *arguments], input=given, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UserError(
            "there is no kubectl on PATH; install it, or write the manifest with dry_run=true and apply it elsewhere"
        ) from error
    if done.returncode == 0:
        return done.stdout
    if "NotFound" in done.stderr:
        return ""
    raise InfrastructureError(f"kubectl {' '.join(arguments[:4])} failed: {' '.join(done.stderr.split())[-300:]}")
