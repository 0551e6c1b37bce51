"""Models as ``torch.export`` graphs, for runtimes without this package; each is checked against its model.

Graphs from here run wherever torch does, AOTInductor and ExecuTorch included. There is no ONNX function: torch's
exporter needs onnxscript, which is no dependency. Tried by hand (torch 2.13 ``torch.onnx.export(dynamo=True)`` with a
free batch axis, onnxscript 0.7.2, onnxruntime 1.32, CPU): encoder and reconstruction of ``hip_nano`` (two modalities)
and ``io_mini`` agree with the model within 2e-5 at batch 1 and 3; the Perceiver's did not finish in three minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

Inputs = dict[str, Tensor]

_TOLERANCE = 1e-4


def export_encoder(model: Any) -> ExportedProgram:
    """The graph from normalised inputs ``{name: [B, T, C]}`` to the encoder's latents, a list of ``[B, G, N, D]``.

    The batch size is free, everything else is the model's; evaluation mode. ``torch.export.save`` writes it to a file.

    Raises:
        RuntimeError: the graph's outputs differ from the model's.
    """
    return _export(model, lambda inputs: model.encode(inputs))


def export_reconstruction(model: Any) -> ExportedProgram:
    """The graph from normalised inputs ``{name: [B, T, C]}`` to the reconstruction of all tokens, in the same form.

    As ``export_encoder`` otherwise.
    """
    return _export(model, lambda inputs: model(inputs).reconstruction)


class _Graph(nn.Module):
    """A model and the one call of it that becomes a graph."""

    def __init__(self, model: nn.Module, call: Callable[[Inputs], Any]) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, inputs: Inputs) -> Any:
        return self._call(inputs)


def _export(model: Any, call: Callable[[Inputs], Any]) -> ExportedProgram:
    was_training = model.training
    graph = _Graph(model.eval(), call)
    try:
        with torch.no_grad():
            # A batch of 1 would be taken for a constant.
            example = _example(model, batch=2)
            batch = Dim("batch", min=1)
            dynamic = {"inputs": {name: {0: batch} for name in example}}
            program = torch.export.export(graph, (example,), dynamic_shapes=dynamic, strict=False)
            runnable = program.module()
            for size in (1, 3):
                _check_equal(runnable, graph, _example(model, size))
    finally:
        model.train(was_training)
    return program


def _example(model: Any, batch: int) -> Inputs:
    """Normal noise in the shape of every input (labels of a class-bottleneck model included)."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(batch)
    entries = (*model.modalities, *getattr(model, "labels", ()))
    noise = {m.name: torch.randn(batch, m.num_tokens, m.num_channels, generator=generator) for m in entries}
    return {name: value.to(parameter.device, parameter.dtype) for name, value in noise.items()}


def _check_equal(exported: nn.Module, graph: nn.Module, inputs: Inputs) -> None:
    found, expected = _leaves(exported(inputs)), _leaves(graph(inputs))
    for name, value in expected.items():
        difference = float((found[name] - value).abs().max()) if found[name].shape == value.shape else float("inf")
        scale = max(1.0, float(value.abs().max()))
        if not difference <= _TOLERANCE * scale:
            raise RuntimeError(
                f"the exported graph's output {name} differs from the model's by {difference:.3g} "
                f"(at most {_TOLERANCE * scale:.3g} is rounding); do not use it"
            )


def _leaves(outputs: Mapping[str, Tensor] | list[Tensor]) -> dict[str, Tensor]:
    if isinstance(outputs, Mapping):
        return dict(outputs)
    return {str(index): value for index, value in enumerate(outputs)}
