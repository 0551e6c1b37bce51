"""Other people's models, set up to take and return what ours do; their packages are imported only when one is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.cases import Case
from hip_model import Modality


class JaxTwin:
    """The original JAX release of a model of ours, with the same parameters."""

    def __init__(self, model: Any, modality: Modality) -> None:
        import haiku
        import jax
        from hierarchical_perceiver import perceiver, perceiver_helpers
        from jax import numpy

        from hip_model.reference import reference_parameters
        from hip_model.variants import HIP_VARIANTS

        name = next(name for name, config in HIP_VARIANTS.items() if config == model.config)
        variant = {"hip_mini": "Mini", "hip_16": "16", "hip_256": "256"}[name]
        answers = perceiver_helpers.ModelOutputKeys.INPUT_RECONSTRUCTION
        self._name = modality.name
        self._jax = jax

        def apply(inputs: Any) -> Any:
            twin = perceiver.build_perceiver("HiP", model_variant_name=variant, model_kwargs={})
            return twin("bench", inputs, is_training=True)[answers]

        transformed = haiku.transform_with_state(apply)

        def forward(parameters: Any, inputs: Any) -> Any:
            output, _ = transformed.apply(parameters, {}, jax.random.PRNGKey(0), inputs)
            return output[modality.name]

        def loss(parameters: Any, inputs: Any) -> Any:
            return numpy.mean((forward(parameters, inputs) - inputs[modality.name]) ** 2)

        self._parameters: dict[str, dict[str, Any]] = {}
        for path, (parameter, transposed) in reference_parameters(model).items():
            module, leaf = path.rsplit("/", 1)
            values = parameter.detach().numpy()
            self._parameters.setdefault(module, {})[leaf] = numpy.array(values.T if transposed else values)
        self._forward = jax.jit(forward)
        self._gradient = jax.jit(jax.value_and_grad(loss))

    def step(self, inputs: dict[str, Tensor]) -> None:
        """Forward + backward."""
        self._jax.block_until_ready(self._gradient(self._parameters, self._arrays(inputs)))

    def difference(self, ours: Case) -> float:
        """Largest difference between our reconstruction and the original's."""
        theirs = np.asarray(self._forward(self._parameters, self._arrays(ours.inputs)))
        with torch.no_grad():
            found = ours.model(ours.inputs).reconstruction[self._name].numpy()
        return float(np.abs(found - theirs).max())

    def _arrays(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        return {name: values.numpy() for name, values in inputs.items()}


class _Embedded(nn.Module):
    """Pixels to tokens with learned positions, as ours are, in front of a model that has no such part."""

    def __init__(self, tokens: int, channels: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.positions = nn.Parameter(torch.randn(tokens, width) * 0.02)

    def forward(self, values: Tensor) -> Tensor:
        embedded: Tensor = self.embed(values) + self.positions
        return embedded


def transformers_step(ours: Case) -> Callable[[], None]:
    """Hugging Face's Perceiver at ``io_c_50m``'s size: 1,024 latents of 512 channels, 8 layers, all tokens answered."""
    from transformers import PerceiverConfig, PerceiverModel
    from transformers.models.perceiver.modeling_perceiver import PerceiverBasicDecoder

    modality, width = ours.modalities[0], 512
    config = PerceiverConfig(
        num_latents=1024,
        d_latents=width,
        d_model=width,
        num_blocks=1,
        num_self_attends_per_block=8,
        num_self_attention_heads=8,
        num_cross_attention_heads=8,
        self_attention_widening_factor=4,
        cross_attention_widening_factor=4,
        attention_probs_dropout_prob=0.0,
    )
    decoder = PerceiverBasicDecoder(
        config,
        output_num_channels=modality.num_channels,
        position_encoding_type="trainable",
        trainable_position_encoding_kwargs={"num_channels": width, "index_dims": modality.num_tokens},
        num_channels=width,
        num_heads=1,
        widening_factor=1,
        use_query_residual=False,
    )
    model = PerceiverModel(config, decoder=decoder)
    embed = _Embedded(modality.num_tokens, modality.num_channels, width)
    return _step([model, embed], lambda values: model(inputs=embed(values)).logits, ours)


def perceiver_pytorch_step(ours: Case) -> Callable[[], None]:
    """perceiver-pytorch's Perceiver IO, as near to ``io_c_50m`` as its options allow (GEGLU MLPs, no decoder MLP)."""
    from perceiver_pytorch import PerceiverIO

    modality, width = ours.modalities[0], 512
    model = PerceiverIO(
        depth=8,
        dim=width,
        queries_dim=width,
        logits_dim=modality.num_channels,
        num_latents=1024,
        latent_dim=width,
        cross_heads=8,
        latent_heads=8,
        cross_dim_head=64,
        latent_dim_head=64,
    )
    embed = _Embedded(modality.num_tokens, modality.num_channels, width)
    queries = nn.Parameter(torch.randn(modality.num_tokens, width) * 0.02)
    holder = nn.ParameterList([queries])
    return _step([model, embed, holder], lambda values: model(embed(values), queries=queries), ours)


def classifier_steps(side: int) -> dict[str, Callable[[], None]]:
    """Training steps of the paper's throughput table: ResNet-50 and ViT-B/16 of timm, 1,000 classes."""
    import timm

    models = {
        "ResNet-50": timm.create_model("resnet50", num_classes=1000),
        "ViT-B/16": timm.create_model("vit_base_patch16_224", num_classes=1000, img_size=side),
    }
    return {name: partial(_classify, model.train(), side) for name, model in models.items()}


def _classify(model: Any, side: int) -> None:
    model.zero_grad(set_to_none=True)
    model(torch.randn(1, 3, side, side)).square().mean().backward()


def _step(modules: list[Any], answer: Callable[[Tensor], Tensor], ours: Case) -> Callable[[], None]:
    def step() -> None:
        for module in modules:
            module.zero_grad(set_to_none=True)
        (values,) = ours.inputs.values()
        (answer(values) - values).square().mean().backward()

    return step
