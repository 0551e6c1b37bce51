"""Forward and backward of masked autoencoding as two CUDA graphs: the host starts two things a step, not thousands.

A HiP of 8 pictures keeps a GPU busy for a sixth of the time that the host needs to launch its kernels one by one
(docs/performance.md, "On a GPU"). Shapes of a training step never change, so the launches can be recorded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from hip_model.autoencoder import MAEOutput, MaskedAutoencoder
from hip_model.kernels.device import recorded_launches
from hip_model.masking import Presence

_WARM_UP = 3


def record_steps(autoencoder: MaskedAutoencoder) -> None:
    """From now on, training steps of ``autoencoder`` on CUDA are replayed from a recording of the first.

    Losses, statistics and gradients are those of the plain forward pass with all device kernels. ``reconstruction`` and
    ``selection`` of an output hold until the next step only. What cannot be replayed runs as before: evaluation, other
    batch shapes, examples that lack a modality, any other device. Weights may change in place (optimizers, loading);
    if they move elsewhere the step is recorded again. Hooks inside the model are not called by a replay.
    """
    autoencoder.forward = _RecordedForward(autoencoder)  # type: ignore[method-assign]


class _RecordedForward:
    def __init__(self, autoencoder: MaskedAutoencoder) -> None:
        self._autoencoder = autoencoder
        self._plain = type(autoencoder).forward
        self._recording: _Recording | None = None

    def __call__(self, inputs: Mapping[str, Tensor], mask_seed: Tensor, present: Presence | None = None) -> MAEOutput:
        autoencoder = self._autoencoder
        is_step = autoencoder.training and torch.is_grad_enabled() and present is None and mask_seed.is_cuda
        if not is_step:
            return self._plain(autoencoder, inputs, mask_seed, present)
        parameters = [p for p in autoencoder.parameters() if p.requires_grad]
        where = tuple(p.data_ptr() for p in parameters)
        if self._recording is None or self._recording.where != where:
            self._recording = None  # its memory is free for the next one
            self._recording = _Recording(autoencoder, inputs, mask_seed, parameters, where)
        if not self._recording.fits(inputs, mask_seed):
            return self._plain(autoencoder, inputs, mask_seed, present)
        return self._recording.replay(inputs, mask_seed)


class _Recording:
    """One step's two graphs, with the memory that they read and write."""

    def __init__(
        self,
        autoencoder: MaskedAutoencoder,
        inputs: Mapping[str, Tensor],
        mask_seed: Tensor,
        parameters: list[nn.Parameter],
        where: tuple[int, ...],
    ) -> None:
        self.where = where
        self.turn = 0
        self._parameters = parameters
        self._model = _Aliased(autoencoder)
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._mask_seed = mask_seed.clone()
        self._forward_graph, self._backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # A cast of a weight that autocast remembers from before would never be made again in a replay.
        is_cast, kind = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with recorded_launches(), torch.autocast("cuda", kind, enabled=is_cast, cache_enabled=False):
            self._warm_up()
            # Threads that write checkpoints or pin batches may go on meanwhile.
            with torch.cuda.graph(self._forward_graph, capture_error_mode="thread_local"):
                output = self._model.compute(self._inputs, self._mask_seed)
            self.loss_gradient = torch.ones_like(output.loss)
            pool = self._forward_graph.pool()
            with torch.cuda.graph(self._backward_graph, pool=pool, capture_error_mode="thread_local"):
                self.gradients = self._model.gradients(output.loss, self.loss_gradient)
        self.output = _detached(output)

    def fits(self, inputs: Mapping[str, Tensor], mask_seed: Tensor) -> bool:
        """Whether these could have been the recorded ones."""
        return mask_seed.shape == self._mask_seed.shape and all(
            value.shape == self._inputs[name].shape and value.dtype == self._inputs[name].dtype
            for name, value in inputs.items()
        )

    def replay(self, inputs: Mapping[str, Tensor], mask_seed: Tensor) -> MAEOutput:
        """The step's output for other inputs; its loss leads back to the parameters."""
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        self._mask_seed.copy_(mask_seed, non_blocking=True)
        loss: Tensor = _Replay.apply(self, *self._parameters)
        copies = _detached(self.output, copy=True)
        return replace(copies, loss=loss)

    def replay_forward(self) -> int:
        """Run the forward pass; the number that its backward pass must show."""
        self._forward_graph.replay()
        self.turn += 1
        return self.turn

    def replay_backward(self, turn: int, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The parameters' gradients, in memory of their own: whoever takes them may add to them.

        Raises:
            RuntimeError: another forward pass came between.
        """
        if turn != self.turn:
            raise RuntimeError("a recorded step's backward pass came after the next forward pass: call it before")
        self.loss_gradient.copy_(gradient)
        self._backward_graph.replay()
        return tuple(None if found is None else found.clone() for found in self.gradients)

    def _warm_up(self) -> None:
        """Kernels are compiled and workspaces made outside the recording."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._model.gradients(self._model.compute(self._inputs, self._mask_seed).loss)
        torch.cuda.current_stream().wait_stream(stream)


class _Aliased(nn.Module):
    """The plain autoencoder on aliases of its parameters: leaves of their own over the same memory.

    PyTorch remembers for each leaf the stream on which it was first used while anything holds on to that use: an old
    loss, or the hooks of DeepSpeed and DDP. A recording must not wait for that stream, so it has leaves without a past.
    """

    def __init__(self, autoencoder: MaskedAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self._aliases: dict[str, Tensor] = {
            name: nn.Parameter(parameter.detach()) if parameter.requires_grad else parameter
            for name, parameter in self.named_parameters()
        }

    def forward(self, inputs: Mapping[str, Tensor], mask_seed: Tensor) -> MAEOutput:
        return type(self.autoencoder).forward(self.autoencoder, inputs, mask_seed)

    def compute(self, inputs: Mapping[str, Tensor], mask_seed: Tensor) -> MAEOutput:
        """The autoencoder's output."""
        output: MAEOutput = functional_call(self, self._aliases, (inputs, mask_seed))
        return output

    def gradients(self, loss: Tensor, gradient: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Of the parameters that are trained, in order."""
        leaves = [alias for alias in self._aliases.values() if alias.requires_grad]
        return torch.autograd.grad(loss, leaves, gradient, allow_unused=True)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: _Recording, *parameters: Tensor) -> Tensor:
        ctx.recording, ctx.turn = recording, recording.replay_forward()
        return recording.output.loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.recording.replay_backward(ctx.turn, gradient)


def _detached(output: MAEOutput, copy: bool = False) -> MAEOutput:
    """Without its way back; ``copy``: numbers that stay when the next step overwrites these."""

    def of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().clone() if copy else value.detach() for name, value in values.items()}

    return replace(
        output,
        loss=output.loss.detach(),
        per_modality_loss=of(output.per_modality_loss),
        per_modality_squared_error=of(output.per_modality_squared_error),
        psnr=of(output.psnr),
        scored_tokens=of(output.scored_tokens),
        reconstruction={name: value.detach() for name, value in output.reconstruction.items()},
    )
