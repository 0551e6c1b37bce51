from __future__ import annotations

import ast

import pytest

from pipeline.registry.bundle import CodeBundle, build_bundle


@pytest.fixture(scope="module")
def bundle() -> CodeBundle:
    return build_bundle()


def test_it_carries_what_serving_needs_and_no_trainer(bundle: CodeBundle) -> None:
    assert {"pipeline/registry/serve.py", "pipeline/preprocess/decode.py", "hip_model/hip.py"} <= set(bundle.files)
    unwanted = ("pipeline/train/", "pipeline/tracking/", "pipeline/tune/", "pipeline/cluster/", "jobs/")
    assert [name for name in bundle.files if name.startswith(unwanted)] == []


def test_requirements_are_pinned_and_only_those_of_serving(bundle: CodeBundle) -> None:
    required = {line.partition("==")[0] for line in bundle.requirements}
    assert {"torch", "mlflow", "safetensors", "av", "numpy", "pandas"} <= required
    assert not required & {"ray", "deepspeed", "hydra-core", "optuna"}
    assert all("==" in line and "+" not in line for line in bundle.requirements)


def test_every_import_of_ours_is_renamed(bundle: CodeBundle) -> None:
    for name, text in bundle.files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.partition(".")[0] not in ("pipeline", "hip_model"), name


def test_the_name_follows_the_content(bundle: CodeBundle) -> None:
    assert build_bundle().package == bundle.package
    assert bundle.package.isidentifier()
