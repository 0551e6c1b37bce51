"""The 2021 Perceiver: the published size, iterative shared attention, and the call surface of the other models."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hip_model import Modality, available_models, build_model
from hip_model.accounting import count_parameters, forward_flops, model_cost
from hip_model.attention import CrossAttention
from hip_model.autoencoder import MaskedAutoencoder
from hip_model.errors import ConfigError, InputError
from hip_model.fourier import fourier_features
from hip_model.heads import ClassificationHead
from hip_model.masking import MASK_POLICIES, MaskConfig, mask_seeds, sample_selection
from hip_model.perceiver import PERCEIVER_VARIANTS, Perceiver, PerceiverConfig
from hip_model.selection import TokenSelection

IMAGE = Modality("image", 48, 3, (6, 8), "hilbert")
AUDIO = Modality("audio", 17, 1)
CLOUD = Modality("cloud", 20, 3, (20,), "kd")
TINY = PERCEIVER_VARIANTS["perceiver_tiny"]


def build(modalities=(IMAGE, AUDIO), config=TINY):
    torch.manual_seed(0)
    model = Perceiver(config, modalities)
    for layer in model.unembed.values():
        torch.nn.init.normal_(layer.weight)
    return model.eval()


def inputs(modalities=(IMAGE, AUDIO), batch=2):
    generator = torch.Generator().manual_seed(1)
    return {m.name: torch.randn(batch, m.num_tokens, m.num_channels, generator=generator) for m in modalities}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_imagenet_model_has_the_published_44_9_million_parameters():
    with torch.device("meta"):
        model = Perceiver(PERCEIVER_VARIANTS["perceiver_imagenet"], (Modality("image", 224, 3, (14, 16)),))
    used = (model.latents, model.first_cross_attention, model.shared_cross_attention, model.self_attention)
    total = sum(map(count, used)) + count(ClassificationHead(1024, 1000))
    assert (total, round(total / 1e6, 1)) == (44_914_302, 44.9)
    assert model.first_cross_attention.key.in_features == 3 + 258


def test_tokens_are_values_positions_and_modality_vector():
    model = build()
    given = inputs()
    tokens = model.full_tokens(given, {name: model.position_code(name) for name in given})
    assert tokens["image"].shape[-1] == tokens["audio"].shape[-1] == 3 + 2 * (2 * 8 + 1) + 4
    assert torch.equal(tokens["image"][..., :3], given["image"])
    features = fourier_features((6, 8), 8, order="hilbert")
    assert torch.equal(tokens["image"][0, :, 3:37], features)
    assert torch.equal(tokens["audio"][0, :, 1:18], fourier_features((17,), 8))
    assert (tokens["audio"][..., 18:] == model.modality_vectors["audio"].weight).all()


def test_iterations_after_the_first_share_their_weights():
    shallow, deep = (Perceiver(TINY.replace(num_iterations=count), (IMAGE,)) for count in (2, 8))
    assert count(shallow) == count(deep)
    assert len(deep.encode(inputs((IMAGE,)))) == 8


def test_latents_written_out_step_by_step():
    model = build()
    given = inputs()
    outputs = model.encode(given)
    tokens = model.full_tokens(given, {name: model.position_code(name) for name in given})
    keys = torch.cat([tokens["image"], tokens["audio"]], dim=1)
    x = model.latents.weight.expand(2, -1, -1)
    for index, output in enumerate(outputs):
        layer = model.first_cross_attention if index == 0 else model.shared_cross_attention
        normed = layer.key_norm(keys)
        logits = layer.query(layer.query_norm(x)) @ layer.key(normed).transpose(1, 2) / keys.shape[-1] ** 0.5
        x = x + layer.output(logits.softmax(-1) @ layer.value(normed))
        hidden = torch.nn.functional.gelu(layer.mlp.hidden(layer.mlp_norm(x)))
        x = x + layer.mlp.output(hidden)
        for attention in model.self_attention:
            x = attention(x.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(output.squeeze(1), x, atol=2e-5, rtol=1e-4)


def test_permuting_the_tokens_of_the_selection_changes_nothing():
    model = build((IMAGE,))
    everything = torch.arange(48).view(1, 1, -1)
    shuffled = torch.randperm(48, generator=torch.Generator().manual_seed(0)).view(1, 1, -1)
    given = inputs((IMAGE,))
    full = model(given)
    for visible in (everything, shuffled):
        found = model(given, TokenSelection({"image": visible}, {"image": everything}, has_empty_slots=False))
        torch.testing.assert_close(found.reconstruction["image"], full.reconstruction["image"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("policy", MASK_POLICIES)
def test_it_is_a_masked_autoencoder(policy):
    video = Modality("video", 2 * 4 * 6, 3, (2, 4, 6))
    autoencoder = MaskedAutoencoder(Perceiver(TINY, (video, AUDIO)), MaskConfig(policy, 0.5))
    seeds = mask_seeds(0, torch.zeros(2), torch.arange(2))
    given = inputs((video, AUDIO))
    visible = autoencoder.reconstruct(given, seeds).visible
    output = autoencoder(given, seeds)
    for name, value in given.items():
        torch.testing.assert_close(output.per_modality_loss[name], value[~visible[name]].square().mean())


def test_masked_values_do_not_matter():
    autoencoder = MaskedAutoencoder(build(), MaskConfig())
    seeds = mask_seeds(0, torch.zeros(2), torch.arange(2))
    shown = autoencoder.reconstruct(inputs(), seeds)
    changed = {k: torch.where(shown.visible[k][..., None], v, v + 1) for k, v in inputs().items()}
    again = autoencoder.reconstruct(changed, seeds)
    for name in changed:
        assert torch.equal(shown.reconstruction[name], again.reconstruction[name])


def test_clouds_and_shapeless_modalities_are_positioned_along_their_sequence():
    model = build((CLOUD, AUDIO))
    assert torch.equal(model.positions["cloud"].features, fourier_features((20,), 8))
    assert model(inputs((CLOUD, AUDIO))).reconstruction["cloud"].shape == (2, 20, 3)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for kind in ("none", "blocks"):
        model = build(config=TINY.replace(activation_checkpointing=kind)).train()
        model(inputs()).reconstruction["image"].square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("modalities", [(IMAGE,), (IMAGE, AUDIO)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_costs_equal_the_models(modalities, iterations, monkeypatch):
    monkeypatch.setattr(CrossAttention, "_cheapest_form", lambda *_: "plain")
    config = TINY.replace(num_iterations=iterations)
    model = build(modalities, config)
    assert count_parameters(config, modalities) == count(model)
    mask = MaskConfig(ratio=0.6)
    selection = sample_selection(mask, modalities, model.group_plan(), torch.tensor([7]))
    for chosen, limit in ((None, None), (selection, mask)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(inputs(modalities, batch=1), chosen)
        assert forward_flops(config, modalities, limit) == counter.get_total_flops()


def test_the_imagenet_model_costs_the_published_707_gigaflops():
    image = (Modality("image", 224 * 224, 3, (224, 224)),)
    parts = model_cost(PERCEIVER_VARIANTS["perceiver_imagenet"], image).parts
    encoder = sum(part.flops for name, part in parts.items() if name in ("first_cross", "shared_cross", "self"))
    assert encoder / 1e9 == pytest.approx(707.2, rel=0.01)


def test_models_are_built_by_name():
    assert build_model("perceiver_tiny", (IMAGE,), num_iterations=2).config == TINY.replace(num_iterations=2)
    assert {"perceiver_imagenet", "perceiver_tiny"} < set(available_models())


def test_a_fresh_model_reconstructs_zero():
    output = Perceiver(TINY, (IMAGE,))(inputs((IMAGE,)))
    assert not output.reconstruction["image"].any()
    assert output.latents[-1].shape == (2, 1, 32, 48)


def test_config_round_trips_and_refuses_what_does_not_fit():
    assert PerceiverConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(ConfigError, match="has no field 'depth'; its fields are num_latents"):
        PerceiverConfig.from_dict({"depth": 1})
    with pytest.raises(ConfigError, match="missing 2 required"):
        PerceiverConfig.from_dict({})
    with pytest.raises(ConfigError, match="num_self_attention_heads=5 does not divide num_channels=48"):
        TINY.replace(num_self_attention_heads=5)
    with pytest.raises(ConfigError, match="num_iterations=0 must be a whole number"):
        TINY.replace(num_iterations=0)
    with pytest.raises(ConfigError, match=r"dropout=1\.0 must be a probability"):
        TINY.replace(dropout=1.0)
    with pytest.raises(ConfigError, match="use one of none, blocks"):
        TINY.replace(activation_checkpointing="all")
    with pytest.raises(ConfigError, match="different names"):
        Perceiver(TINY, (IMAGE, IMAGE))
    with pytest.raises(InputError, match="image"):
        build()({"image": torch.zeros(1, 5, 3), "audio": torch.zeros(1, 17, 1)})


def test_learned_positions_stand_beside_embedded_values_and_both_learn():
    config = TINY.replace(position="learned", embedding_channels=12, position_channels=6)
    model = Perceiver(config, (IMAGE, AUDIO))
    tokens = model.full_tokens(inputs(), {name: model.position_code(name) for name in ("image", "audio")})
    assert tokens["image"].shape[-1] == tokens["audio"].shape[-1] == 12 + 6 + config.modality_channels
    assert torch.equal(tokens["image"][..., :12], model.embed["image"](inputs()["image"]))
    with torch.no_grad():
        for unembed in model.unembed.values():
            unembed.weight.normal_()
    seeds = mask_seeds(0, torch.zeros(2), torch.arange(2))
    MaskedAutoencoder(model, MaskConfig("independent", 0.5))(inputs(), seeds).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for part in (model.embed, model.positions):
        assert all(bool((parameter.grad != 0).any()) for parameter in part.parameters())
    assert count(model) == count_parameters(config, (IMAGE, AUDIO))
    with pytest.raises(ConfigError, match="position='table' is not known"):
        TINY.replace(position="table")
