"""Write a trained model as an MLflow model folder: pyfunc on raw media, and a plain PyTorch graph beside it."""

from __future__ import annotations

import base64
import contextlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.registry.bundle import CodeBundle, build_bundle
from pipeline.registry.inference import Predictor
from pipeline.registry.render import render
from pipeline.registry.resolve import CONFIG, PACKAGED, WEIGHTS
from pipeline.storage import redact

logger = logging.getLogger(__name__)

_MODEL_FILES = (WEIGHTS, CONFIG, "head.safetensors")
_CODE = """\
# Loaded by MLflow: names the class that answers requests.
from mlflow.models import set_model

from {module} import ServedModel

set_model(ServedModel())
"""


def package_model(folder: Path, target: Path, card: str, with_pytorch: bool = True) -> Predictor:
    """Write the model in ``folder`` as an MLflow model at ``target`` (which must not exist), and return it loaded.

    Raises:
        UserError: the model does not load, or carries no recipe to decode media with.
    """
    predictor = Predictor.load(folder, device="cpu")
    if not predictor.loaded.metadata["data"].get("recipe"):
        raise UserError(
            f"{folder}: its config.json has no token recipe, so it could not read media; train it on shards"
        )
    with tempfile.TemporaryDirectory(prefix="hip_package_") as temporary:
        _save_pyfunc(folder, target, build_bundle(), example_media(predictor), Path(temporary))
        if with_pytorch:
            _add_pytorch(predictor, target)
    (target / "README.md").write_text(card, encoding="utf-8")
    return predictor


def example_media(predictor: Predictor) -> str:
    """A small valid input for the model: its first modality's mean values as a media file, in base64."""
    spec = next(iter(predictor.specs.values()))
    mean = np.array(predictor.loaded.normalisations[spec.name].mean)
    if spec.name == "points":
        tokens = np.random.default_rng(0).normal(size=(spec.num_tokens, spec.num_channels)).astype(np.float32)
    else:
        tokens = np.broadcast_to(np.rint(mean), (spec.num_tokens, spec.num_channels)).astype(spec.dtype)
    return base64.b64encode(render(spec, tokens)[1]).decode()


def _save_pyfunc(folder: Path, target: Path, bundle: CodeBundle, example: str, temporary: Path) -> None:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    staged = temporary / "model"
    staged.mkdir()
    for name in _MODEL_FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, staged / name)
    # The config remembers the training options; whoever may load the model may not log in to the tracking server.
    (staged / CONFIG).write_text(redact((folder / CONFIG).read_text(encoding="utf-8")), encoding="utf-8")
    script = temporary / "served_model.py"
    script.write_text(_CODE.format(module=bundle.entry_module), encoding="utf-8")
    params = [ParamSpec("output", "string", "embeddings"), ParamSpec("top_k", "long", 5)]
    params += [ParamSpec("mask_ratio", "double", 0.0)]
    signature = ModelSignature(Schema([ColSpec(AnyType(), "media")]), params=ParamSchema(params))
    code = bundle.write(temporary / "code")
    with _importable(code.parent, bundle.package):
        save_model(
            str(target),
            python_model=str(script),
            artifacts={"model": str(staged)},
            code_paths=[str(code)],
            signature=signature,
            input_example=pd.DataFrame({"media": [example]}),
            pip_requirements=bundle.requirements,
            metadata={"made_by": "hip register", "hip_package_version": 1},
        )
    assert (target / PACKAGED / WEIGHTS).is_file(), "MLflow keeps artifacts under their own name"


@contextlib.contextmanager
def _importable(folder: Path, package: str) -> Iterator[None]:
    """MLflow runs the model's script while saving it; nothing of that stays imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


def _add_pytorch(predictor: Predictor, target: Path) -> None:
    """Add the flavour that ``mlflow.pytorch.load_model`` reads: an exported graph, which needs none of our code.

    MLflow's own writer would dump a whole example batch as JSON text, so graph and flavour are written here.
    """
    import torch
    from mlflow.models import Model
    from torch.export import Dim, export
    from torch.export import save as save_graph

    from pipeline.registry.graph import EmbeddingGraph

    # Two examples: a dimension of one would be exported as a constant.
    example = tuple(torch.zeros(2, spec.num_tokens, spec.num_channels) for spec in predictor.specs.values())
    with torch.no_grad():
        graph = export(EmbeddingGraph(predictor).eval(), example, dynamic_shapes=(({0: Dim("batch")},) * len(example),))
    (target / "data").mkdir()
    save_graph(graph, target / "data" / "model.pt2")
    description = Model.load(str(target))
    description.add_flavor("pytorch", model_data="data", pytorch_version=str(torch.__version__), code=None)
    description.save(str(target / "MLmodel"))
