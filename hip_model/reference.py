"""Parameters of the original JAX release, loaded by the names its module tree gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hip_model.class_bottleneck import ClassBottleneckHiP
from hip_model.errors import ConfigError
from hip_model.hip import HiP
from hip_model.init import Linear, Table
from hip_model.perceiver_io import PerceiverIO
from hip_model.tokens import TokenModel

_CROSS = {
    "query_norm": "layer_norm",
    "key_norm": "layer_norm_1",
    "mlp_norm": "layer_norm_2",
    "query": "attention/query_linear",
    "key": "attention/key_linear",
    "value": "attention/value_linear",
    "output": "attention/attention_output_linear",
    "mlp.hidden": "dense/mlp_hidden_linear",
    "mlp.output": "dense/mlp_output_linear",
    "skip": "pre_attention_residual_linear",
}
_SELF = {
    "attention_norm": "layer_norm",
    "mlp_norm": "layer_norm_1",
    "query": "attention/query_linear",
    "key": "attention/key_linear",
    "value": "attention/value_linear",
    "output": "attention/attention_output_linear",
    "mlp.hidden": "dense/mlp_hidden_linear",
    "mlp.output": "dense/mlp_output_linear",
}
_LEAVES = {
    Linear: {"weight": "w", "bias": "b"},
    nn.LayerNorm: {"weight": "scale", "bias": "offset"},
    Table: {"weight": "pos_embs"},
}


def load_reference_parameters(model: TokenModel, parameters: Mapping[str, NDArray[np.floating]]) -> None:
    """Fill ``model`` with ``{"<module path>/<parameter>": array}`` so that its outputs equal the original's.

    Raises:
        ConfigError: a missing, extra or misshapen entry, by name; the model is then unchanged.
    """
    wanted = reference_parameter_shapes(model)
    if missing := sorted(set(wanted) - set(parameters)):
        raise ConfigError(f"{len(missing)} parameters are missing, the first is {missing[0]!r} {wanted[missing[0]]}")
    if extra := sorted(set(parameters) - set(wanted)):
        raise ConfigError(f"{len(extra)} parameters are not this model's, the first is {extra[0]!r}")
    for name, shape in wanted.items():
        if tuple(parameters[name].shape) != shape:
            raise ConfigError(f"parameter {name!r} has shape {tuple(parameters[name].shape)}, this model's has {shape}")
    with torch.no_grad():
        for name, (parameter, transposed) in reference_parameters(model).items():
            values = torch.tensor(np.asarray(parameters[name]))
            parameter.copy_(values.T if transposed else values)


def reference_parameter_shapes(model: TokenModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes that ``load_reference_parameters`` expects for this model.

    Raises:
        ConfigError: a model with parameters the original has no place for (Fourier positions).
    """
    shapes = {}
    for name, (parameter, transposed) in reference_parameters(model).items():
        shape = tuple(parameter.shape)
        shapes[name] = shape[::-1] if transposed else shape
    return shapes


def reference_parameters(model: TokenModel) -> dict[str, tuple[nn.Parameter, bool]]:
    """Every parameter under its original name, and whether the original stores it transposed (``[in, out]``)."""
    found = {}
    for path, module in _modules(model):
        for kind, leaves in _LEAVES.items():
            if isinstance(module, kind):
                for leaf, parameter in module.named_parameters(recurse=False):
                    transposed = isinstance(module, Linear) and leaf == "weight"
                    found[f"perceiver/{path}/{leaves[leaf]}"] = (parameter, transposed)
    if len(found) != len(list(model.parameters())):
        raise ConfigError("the original release has learned positions only; this model has parameters beyond it")
    return found


def _modules(model: TokenModel) -> Iterator[tuple[str, nn.Module]]:
    for modality in model.modalities:
        name = modality.name
        yield f"embedder/~embed/embed_{name}", model.embed[name]
        yield f"embedder/~unembed/unembed_{name}", model.unembed[name]
        yield f"position_encoder/pos_emb_mae_{name}", model.positions[name]
    for index, projection in enumerate(model.position_projections):
        yield f"position_encoder/position_encoding_linear{_suffix(index)}", projection
    with_labels = isinstance(model, ClassBottleneckHiP)
    blocks = model.stages() if isinstance(model, HiP | PerceiverIO) else []
    for index, block in enumerate(blocks):
        yield from _block_modules(f"{'perceiver_' if with_labels else ''}block_{index}", block)
    # The label head is built first, so the ordinary one gets the number.
    yield from _named(
        f"reconstruction_head{'_1' if with_labels else ''}/hi_p_cross_attention", model.get_submodule("head"), _CROSS
    )
    if isinstance(model, ClassBottleneckHiP):
        yield from _label_modules(model)


def _block_modules(path: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    cross = f"{path}/~/hi_p_cross_attention"
    yield f"{cross}/query_inputs", block.get_submodule("latents")
    yield from _named(cross, block.get_submodule("cross_attention"), _CROSS)
    for index, layer in enumerate(block.get_submodule("self_attention").children()):
        yield from _named(f"{path}/~/self_attend_id_{index}", layer, _SELF)


def _label_modules(model: ClassBottleneckHiP) -> Iterator[tuple[str, nn.Module]]:
    yield from _named("reconstruction_head/hi_p_cross_attention", model.label_head, _CROSS)
    for index, label in enumerate(model.labels, start=1):
        yield f"embedder_{index}/~embed/embed_{label.name}", model.label_embed[label.name]
        yield f"embedder_{index}/~unembed/unembed_{label.name}", model.label_unembed[label.name]
        yield f"position_encoder_{index}/pos_emb_mae_{label.name}", model.label_positions[label.name]


def _named(path: str, module: nn.Module, names: Mapping[str, str]) -> Iterator[tuple[str, nn.Module]]:
    present = dict(module.named_modules())
    for ours, theirs in names.items():
        if ours in present:
            yield f"{path}/{theirs}", present[ours]


def _suffix(index: int) -> str:
    return f"_{index}" if index else ""
