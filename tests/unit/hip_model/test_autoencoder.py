"""The masked autoencoder: what enters, what is scored, and that the numbers are the plain definition's."""

import math

import pytest
import torch

from hip_model import ClassBottleneckHiP, HiPConfig, Modality, build_model
from hip_model.autoencoder import LossConfig, MaskedAutoencoder
from hip_model.errors import ConfigError, InputError
from hip_model.masking import MASK_POLICIES, MaskConfig, mask_seeds
from hip_model.normalisation import Normalisation

VIDEO = Modality("video", 2 * 6 * 7, 3, (2, 6, 7))
AUDIO = Modality("audio", 45, 1, (45,))
BATCH = 3
STATISTICS = {
    "video": Normalisation((120.0, 110.0, 100.0), (60.0, 50.0, 40.0)),
    "audio": Normalisation((5.0,), (900.0,)),
}
ARCHITECTURES = ["hip_nano", "io_mini"]


def build(name="hip_nano", mask=None, loss=None, modalities=(VIDEO, AUDIO), trained=True):
    torch.manual_seed(0)
    model = build_model(name, modalities)
    if trained:
        for layer in model.unembed.values():
            torch.nn.init.normal_(layer.weight)
    statistics = {m.name: STATISTICS[m.name] for m in modalities}
    return MaskedAutoencoder(model, mask, loss, statistics)


def raw_inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "video": torch.randint(0, 256, (BATCH, VIDEO.num_tokens, 3), generator=generator, dtype=torch.uint8),
        "audio": torch.randint(-3000, 3000, (BATCH, 45, 1), generator=generator, dtype=torch.int16),
    }


def seeds(epoch=0):
    return mask_seeds(0, torch.full((BATCH,), epoch), torch.arange(BATCH))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("policy", MASK_POLICIES)
def test_a_fresh_model_scores_the_mean_square_of_the_masked_targets(name, policy):
    autoencoder = build(name, MaskConfig(policy), trained=False)
    inputs = raw_inputs()
    output = autoencoder(inputs, seeds())
    visible = autoencoder.reconstruct(inputs, seeds()).visible
    expected = []
    for key, value in inputs.items():
        target = STATISTICS[key].normalise(value)
        expected.append(target[~visible[key]].square().mean())
        torch.testing.assert_close(output.per_modality_loss[key], expected[-1])
        assert not output.reconstruction[key].any()
    torch.testing.assert_close(output.loss, torch.stack(expected).mean())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_first_gradient_is_in_the_unembedding_alone(name):
    autoencoder = build(name, trained=False)
    autoencoder(raw_inputs(), seeds()).loss.backward()
    for key, parameter in autoencoder.model.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.any())
        assert has_gradient == key.startswith("unembed"), key


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("policy", MASK_POLICIES)
@pytest.mark.parametrize("on", ["masked", "all"])
def test_loss_and_psnr_equal_their_definition_on_the_full_reconstruction(name, policy, on):
    autoencoder = build(name, MaskConfig(policy, 0.6), LossConfig(on))
    inputs = raw_inputs()
    output = autoencoder(inputs, seeds())
    shown = autoencoder.reconstruct(inputs, seeds())
    for key, value in inputs.items():
        scored = ~shown.visible[key] if on == "masked" else torch.ones_like(shown.visible[key])
        raw_error = (shown.reconstruction[key] - value.float())[scored].double()
        expected = (raw_error / torch.tensor(STATISTICS[key].std)).square().mean(dim=0)
        torch.testing.assert_close(output.per_modality_squared_error[key].double(), expected, rtol=2e-3, atol=1e-4)
        assert output.scored_tokens[key] == scored.sum()
        peak = 255 if key == "video" else 65535
        psnr = 10 * math.log10(peak**2 / raw_error.square().mean().item())
        assert output.psnr[key].item() == pytest.approx(psnr, abs=0.02)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_of_masked_tokens_never_reach_the_model(name):
    autoencoder = build(name)
    inputs = raw_inputs()
    shown = autoencoder.reconstruct(inputs, seeds())
    changed = {key: torch.where(shown.visible[key][..., None], value, value + 7) for key, value in inputs.items()}
    again = autoencoder.reconstruct(changed, seeds())
    for key in inputs:
        assert torch.equal(shown.reconstruction[key], again.reconstruction[key])
        assert torch.equal(again.raw[key], changed[key])


def test_a_masked_loss_ignores_visible_targets():
    autoencoder = build(trained=False)
    inputs = raw_inputs()
    visible = autoencoder.reconstruct(inputs, seeds()).visible
    changed = {key: torch.where(visible[key][..., None], value + 9, value) for key, value in inputs.items()}
    assert autoencoder(inputs, seeds()).loss == autoencoder(changed, seeds()).loss


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_absent_modalities_neither_enter_nor_count(name):
    autoencoder = build(name)
    present = {"audio": torch.tensor([True, False, False])}
    inputs = raw_inputs()
    changed = {**inputs, "audio": inputs["audio"].clone()}
    changed["audio"][1:] = -32768
    first, second = autoencoder(inputs, seeds(), present), autoencoder(changed, seeds(), present)
    assert first.loss == second.loss
    assert first.scored_tokens["audio"] == (~autoencoder.reconstruct(inputs, seeds()).visible["audio"][0]).sum()
    nobody = autoencoder(inputs, seeds(), {"audio": torch.zeros(BATCH, dtype=torch.bool)})
    assert nobody.loss == nobody.per_modality_loss["video"]
    assert nobody.per_modality_loss["audio"] == 0
    assert nobody.psnr["audio"].isnan()


@pytest.mark.parametrize("policy", MASK_POLICIES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_nobody_has_takes_one_slot_and_says_as_much_as_all_of_them_empty(name, policy):
    autoencoder, inputs = build(name, MaskConfig(policy)), raw_inputs()

    def scored(present):
        autoencoder.zero_grad(set_to_none=True)
        output = autoencoder(inputs, seeds(), {"audio": present})
        output.loss.backward()
        return output, {key: parameter.grad for key, parameter in autoencoder.named_parameters()}

    short, gradients = scored(None)
    long, wanted = scored(torch.zeros(BATCH, dtype=torch.bool))
    assert short.selection.visible["audio"].shape == short.selection.queries["audio"].shape == (1, 1, 1)
    assert long.selection.queries["audio"].shape[-1] > 1
    torch.testing.assert_close(short.loss, long.loss)
    assert short.scored_tokens["audio"] == long.scored_tokens["audio"] == 0
    assert gradients.keys() == wanted.keys()
    for key, gradient in gradients.items():  # each has one: engines that gather them wait for it
        assert gradient is not None, key
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-4, atol=1e-4)


def test_weights_make_a_weighted_mean():
    output = build(loss=LossConfig(weights={"audio": 3.0}))(raw_inputs(), seeds())
    losses = output.per_modality_loss
    torch.testing.assert_close(output.loss, (losses["video"] + 3 * losses["audio"]) / 4)


def test_floats_are_taken_as_normalised():
    inputs = raw_inputs()
    normalised = {key: STATISTICS[key].normalise(value) for key, value in inputs.items()}
    autoencoder = build()
    torch.testing.assert_close(autoencoder(inputs, seeds()).loss, autoencoder(normalised, seeds()).loss)
    raw = autoencoder.reconstruct(normalised, seeds()).raw
    torch.testing.assert_close(raw["video"], inputs["video"].float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("policy", MASK_POLICIES)
def test_an_examples_loss_does_not_depend_on_its_batch(policy):
    autoencoder = build(mask=MaskConfig(policy)).eval()
    inputs = raw_inputs()
    alone = [
        autoencoder({key: value[row : row + 1] for key, value in inputs.items()}, seeds()[row : row + 1])
        for row in range(BATCH)
    ]
    together = autoencoder(inputs, seeds())
    for key in inputs:
        total = sum(one.per_modality_loss[key] * one.scored_tokens[key] for one in alone)
        torch.testing.assert_close(total / together.scored_tokens[key], together.per_modality_loss[key])


def test_it_learns():
    autoencoder = build(mask=MaskConfig(ratio=0.5), trained=False)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=3e-3)
    ramp = torch.linspace(0, 255, VIDEO.num_tokens)[None, :, None].expand(BATCH, -1, 3).to(torch.uint8)
    inputs = {"video": ramp, "audio": torch.full((BATCH, 45, 1), 900, dtype=torch.int16)}
    losses = []
    for step in range(40):
        loss = autoencoder(inputs, seeds(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_label_can_be_a_modality_that_is_always_asked_for():
    label = Modality("label", 1, 4)
    model = build_model("hip_nano", (VIDEO, label))
    autoencoder = MaskedAutoencoder(model, MaskConfig(per_modality={"label": 1.0}))
    one_hot = torch.nn.functional.one_hot(torch.tensor([[0], [1], [3]]), 4).float()
    output = autoencoder({"video": torch.randn(BATCH, VIDEO.num_tokens, 3), "label": one_hot}, seeds())
    assert output.scored_tokens["label"] == BATCH
    assert output.per_modality_loss["label"].item() == pytest.approx(0.25)


@pytest.mark.parametrize("policy", MASK_POLICIES)
def test_labels_of_the_class_bottleneck_model_are_masked_and_scored_too(policy):
    label = Modality("label", 1, 4)
    model = ClassBottleneckHiP(HiPConfig.variant("nano"), (VIDEO, AUDIO), (label,))
    autoencoder = MaskedAutoencoder(model, MaskConfig(policy, per_modality={"label": 1.0}))
    one_hot = torch.nn.functional.one_hot(torch.tensor([[0], [1], [3]]), 4).float()
    inputs = {"label": one_hot, "video": torch.randn(BATCH, 84, 3), "audio": torch.randn(BATCH, 45, 1)}
    output = autoencoder(inputs, seeds())
    assert output.scored_tokens["label"] == BATCH
    assert output.per_modality_loss["label"].item() == pytest.approx(0.25)
    changed = {**inputs, "label": one_hot.flip(0)}
    torch.nn.init.normal_(model.unembed["video"].weight)
    first, second = (autoencoder.reconstruct(each, seeds()).reconstruction["video"] for each in (inputs, changed))
    assert torch.equal(first, second)
    assert first.any()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["autocast", "cast"])
def test_bfloat16_gives_nearly_the_same_loss_in_float32(name, kind):
    autoencoder = build(name)
    expected = autoencoder(raw_inputs(), seeds()).loss.item()
    if kind == "cast":
        autoencoder = autoencoder.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        output = autoencoder(raw_inputs(), seeds())
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected, rel=0.02)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in autoencoder.parameters() if parameter.grad is not None)


def test_a_step_compiles_into_one_graph():
    autoencoder = build()
    expected = autoencoder(raw_inputs(), seeds()).loss
    compiled = torch.compile(autoencoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(raw_inputs(), seeds()).loss, expected)


@pytest.mark.parametrize("policy", MASK_POLICIES)
def test_shapes_can_be_had_on_the_meta_device(policy):
    with torch.device("meta"):
        autoencoder = MaskedAutoencoder(build_model("hip_nano", (VIDEO, AUDIO)), MaskConfig(policy))
        inputs = {"video": torch.empty(BATCH, 84, 3), "audio": torch.empty(BATCH, 45, 1)}
        output = autoencoder(inputs, torch.empty(BATCH, dtype=torch.int64))
    assert output.loss.is_meta


def test_reconstruct_leaves_the_mode_alone():
    autoencoder = build()
    autoencoder.reconstruct(raw_inputs(), seeds())
    assert autoencoder.model.training


def test_a_setting_that_would_train_nothing_is_refused():
    with pytest.raises(ConfigError, match="loss weight 0 for video, audio leaves nothing to learn"):
        build(loss=LossConfig(weights={"video": 0, "audio": 0}))
    nothing_hidden = MaskConfig(per_modality={"video": 0, "audio": 0})
    with pytest.raises(ConfigError, match=r"mask ratio 0 for video, audio .* loss\.on=all"):
        build(mask=nothing_hidden)
    with pytest.raises(ConfigError, match="mask ratio 0 for audio leaves"):
        build(mask=MaskConfig(per_modality={"audio": 0}), loss=LossConfig(weights={"video": 0}))
    with pytest.raises(ConfigError, match="leaves nothing to see"):
        build(mask=MaskConfig(per_modality={"video": 1, "audio": 1}))
    assert build(mask=nothing_hidden, loss=LossConfig("all")).loss.on == "all"


def test_errors_name_what_is_wrong():
    with pytest.raises(ConfigError, match="loss weights name sound, but the modalities are video, audio"):
        build(loss=LossConfig(weights={"sound": 1.0}))
    with pytest.raises(ConfigError, match="'some' is unknown; choose one of masked, all"):
        LossConfig("some")
    with pytest.raises(ConfigError, match="0 or more, got -1"):
        LossConfig(weights={"video": -1})
    with pytest.raises(InputError, match="'audio' is missing"):
        build()({"video": raw_inputs()["video"]}, seeds())
    bare = MaskedAutoencoder(build_model("hip_nano", (VIDEO, AUDIO)))
    with pytest.raises(InputError, match=r"torch\.uint8 without a normalisation"):
        bare(raw_inputs(), seeds())
