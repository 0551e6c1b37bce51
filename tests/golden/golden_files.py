"""The golden files computed with the original release, and the rule its parameters and inputs follow."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hip_model import ClassBottleneckHiP, HiP, HiPConfig, Modality, PerceiverIO, PerceiverIOConfig
from hip_model.reference import load_reference_parameters, reference_parameter_shapes
from hip_model.tokens import TokenModel

_ROOT = Path(__file__).resolve().parents[2]
GOLDENS = Path(os.environ.get("HIP_SHARED", _ROOT.parent / "shared")) / "reference" / "goldens"

_FIELDS = {
    "num_groups": "num_groups",
    "z_index_dim": "num_latents",
    "num_z_channels": "num_channels",
    "num_self_attends_per_block": "num_self_attention_layers",
    "num_self_attend_heads": "num_self_attention_heads",
    "num_cross_attend_heads": "num_cross_attention_heads",
    "cross_attend_widening_factor": "cross_attention_widening",
    "self_attend_widening_factor": "self_attention_widening",
    "num_embedding_channels": "embedding_channels",
}


def read_json(name: str) -> Any:
    return json.loads((GOLDENS / name).read_text())


def golden_model(entry: dict[str, Any]) -> TokenModel:
    """The model a manifest entry describes, in its modality order."""
    options = entry["options"]
    fields = {_FIELDS[name]: value for name, value in entry["config"].items()}
    width = options.get("num_position_encoding_channels")
    fields["position_projection"] = width is not None and width != fields["embedding_channels"]
    modalities = [Modality(name, *entry["inputs"][name][1:]) for name in entry["modality_order"]]
    if entry["model"] == "PerceiverIO":
        return PerceiverIO(PerceiverIOConfig(**fields), modalities)
    fields["regroup"] = options.get("regroup_type", "reshape")
    fields["processor_latents_eval"] = options.get("processor_index_dim_eval")
    labels = [modality for modality in modalities if modality.name in options.get("label_modalities", [])]
    tokens = [modality for modality in modalities if modality not in labels]
    config = HiPConfig(**fields)
    return ClassBottleneckHiP(config, tokens, labels) if labels else HiP(config, tokens)


def rule_values(name: str, shape: tuple[int, ...], rule_seed: int) -> NDArray[np.float32]:
    """The values the goldens' README prescribes for a parameter or an input of this name."""
    generator = np.random.RandomState((zlib.crc32(name.encode()) + rule_seed) % 2**32)
    values = generator.standard_normal(shape)
    last = name.rsplit("/", 1)[-1]
    if name.startswith("input/"):
        scaled = values
    elif last == "w":
        scaled = values / np.sqrt(shape[0])
    elif last == "scale":
        scaled = 1 + 0.1 * values
    elif last in ("b", "offset"):
        scaled = 0.1 * values
    else:
        scaled = (0.05 if "/query_inputs/" in name else 0.3) * values
    return scaled.astype(np.float32)


def rule_parameters(model: TokenModel, rule_seed: int) -> dict[str, NDArray[np.float32]]:
    return {name: rule_values(name, shape, rule_seed) for name, shape in reference_parameter_shapes(model).items()}


def load_golden(entry: dict[str, Any], arrays: Any) -> TokenModel:
    """The entry's model in evaluation mode, filled with the file's parameters or by the rule."""
    model = golden_model(entry)
    stored = {name[len("param/") :]: arrays[name] for name in arrays.files if name.startswith("param/")}
    load_reference_parameters(model, stored or rule_parameters(model, entry["rule_seed"]))
    return model.eval()


def golden_inputs(arrays: Any) -> dict[str, torch.Tensor]:
    return {name.split("/")[1]: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("input/")}


def entries(arrays: Any, prefix: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Arrays whose name starts with ``prefix``, under the rest of their name."""
    for name in arrays.files:
        if name.startswith(prefix):
            yield name[len(prefix) :], arrays[name]
