"""Saved models come back equal, and a damaged folder is refused with the file and tensor named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hip_model import ClassBottleneckHiP, HiPConfig, Modality, available_models, build_model
from hip_model.errors import InputError
from hip_model.export import CONFIG_FILE, WEIGHTS_FILE, from_pretrained, load_metadata, save_pretrained

MODALITIES = (Modality("image", 48, 3, (6, 8), "hilbert"), Modality("audio", 17, 1, (17,)))
METADATA = {"data": {"label_names": ["a", "b"]}, "step": 3}
LABEL = Modality("label", 1, 4)
SMALL = [name for name in available_models() if name in ("hip_nano", "hip_micro", "io_mini", "perceiver_tiny")]


def build(name="hip_nano", **overrides):
    model = build_model(name, MODALITIES, **overrides)
    for layer in model.unembed.values():
        torch.nn.init.normal_(layer.weight)
    return model.eval()


def inputs(batch=2):
    generator = torch.Generator().manual_seed(0)
    return {m.name: torch.randn(batch, m.num_tokens, m.num_channels, generator=generator) for m in MODALITIES}


@pytest.fixture
def saved(tmp_path):
    model = build()
    save_pretrained(model, tmp_path / "model", METADATA)
    return model, tmp_path / "model"


def assert_same_outputs(model, loaded):
    assert not loaded.training
    with torch.no_grad():
        expected, found = model(inputs()), loaded(inputs())
    for name, value in expected.reconstruction.items():
        assert torch.equal(value, found.reconstruction[name])
        assert value.any()


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_round_trips(name, tmp_path):
    model = build(name)
    save_pretrained(model, tmp_path, METADATA)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.modalities == model.modalities
    assert_same_outputs(model, loaded)
    assert load_metadata(tmp_path) == METADATA
    card = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert (card["format_version"], card["name"]) == (1, name)


def test_the_class_bottleneck_model_keeps_its_labels(tmp_path):
    model = ClassBottleneckHiP(HiPConfig.variant("nano"), MODALITIES, (LABEL,)).eval()
    torch.nn.init.normal_(model.label_unembed["label"].weight)
    save_pretrained(model, tmp_path, {})
    loaded = from_pretrained(tmp_path)
    assert loaded.labels == (LABEL,)
    given = {**inputs(), "label": torch.ones(2, 1, 4)}
    with torch.no_grad():
        assert torch.equal(model(given).reconstruction["label"], loaded(given).reconstruction["label"])


def test_weights_are_as_readable_as_the_config(saved):
    """A file that only its owner reads is of no use to a colleague or a server under another account."""
    _, folder = saved
    assert (folder / WEIGHTS_FILE).stat().st_mode == (folder / CONFIG_FILE).stat().st_mode


def test_loaded_models_train_on(saved):
    loaded = from_pretrained(saved[1]).train()
    loaded(inputs()).reconstruction["image"].square().mean().backward()
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.embed["image"].weight.grad.any()


def test_the_same_weights_are_the_same_bytes(tmp_path):
    model = build()
    for number in range(12):
        save_pretrained(model, tmp_path / str(number), {**METADATA, "number": number})
    assert len({(tmp_path / str(number) / WEIGHTS_FILE).read_bytes() for number in range(12)}) == 1


def test_changed_configs_round_trip(tmp_path):
    model = build(position={"image": "fourier", "audio": "learned"}, regroup="transpose_reshape")
    save_pretrained(model, tmp_path, {})
    assert_same_outputs(model, from_pretrained(tmp_path))
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["name"] is None


def test_reads_a_file_uri_and_any_fsspec_scheme(saved):
    import fsspec

    model, folder = saved
    assert_same_outputs(model, from_pretrained(folder.as_uri()))
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/model", recursive=True)
    assert_same_outputs(model, from_pretrained("memory://bucket/model"))
    assert load_metadata("memory://bucket/model/") == METADATA
    with pytest.raises(InputError, match=r"no model at memory://bucket/other: config\.json is missing"):
        from_pretrained("memory://bucket/other")
    with pytest.raises(InputError, match=r"cannot read nosuch://\*\*\*@host/x"):
        from_pretrained("nosuch://user:secret@host/x")


def test_loading_leaves_the_random_stream_alone(saved):
    before = torch.get_rng_state()
    from_pretrained(saved[1])
    assert torch.equal(before, torch.get_rng_state())


def test_overwriting_replaces_both_files_and_nothing_else(saved):
    _, folder = saved
    (folder / "trainer_state.json").write_text("{}")
    model = build()
    save_pretrained(model, folder, {"step": 4})
    assert load_metadata(folder) == {"step": 4}
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE, "trainer_state.json"]
    assert_same_outputs(model, from_pretrained(folder))


def test_a_gathered_state_may_replace_the_models_own(tmp_path):
    model, other = build(), build()
    save_pretrained(model, tmp_path, {}, state=other.state_dict())
    assert_same_outputs(other, from_pretrained(tmp_path))
    with pytest.raises(InputError, match=r"the given state lacks tensor 'embed\.image"):
        save_pretrained(model, tmp_path, {}, state={})


@pytest.mark.parametrize("kept", [0, 7, 200, 0.5, 0.999])
def test_truncated_weights_are_refused(saved, kept):
    path = saved[1] / WEIGHTS_FILE
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated or corrupt"):
        from_pretrained(saved[1])


def test_a_flipped_bit_names_its_tensor(saved):
    path = saved[1] / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is corrupt: the values of tensor '.+' do not match"):
        from_pretrained(saved[1])


def rewrite(folder, change):
    weights = load_file(folder / WEIGHTS_FILE)
    change(weights)
    save_file(weights, folder / WEIGHTS_FILE)


def test_weights_that_do_not_fit_name_the_tensor(saved):
    folder = saved[1]
    rewrite(folder, lambda weights: weights.update({"surplus": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"model\.safetensors has tensor 'surplus'"):
        from_pretrained(folder)
    rewrite(folder, lambda weights: weights.update({"embed.image.bias": torch.zeros(5)}))
    with pytest.raises(InputError, match=r"tensor 'embed\.image\.bias' has shape \[5\], the model needs \[16\]"):
        from_pretrained(folder)
    rewrite(folder, lambda weights: weights.pop("embed.image.bias"))
    with pytest.raises(InputError, match=r"lacks tensor 'embed\.image\.bias' of shape \[16\]"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "hop"}, "architecture 'hop', which is unknown; the nearest is 'hip'"),
        ({"format_version": 2}, "format version 2, this package reads 1"),
        ({"config": {"depth": 3}}, "does not describe a valid model: HiPConfig has no field 'depth'"),
        ({"modalities": [{"name": "x"}]}, "does not describe a valid model"),
    ],
)
def test_bad_cards_say_why(saved, change, message):
    path = saved[1] / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        from_pretrained(saved[1])


def test_missing_and_broken_files_are_named(saved, tmp_path):
    folder = saved[1]
    with pytest.raises(InputError, match=r"config\.json is missing"):
        from_pretrained(tmp_path / "nowhere")
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match=r"no weights at .*model\.safetensors"):
        from_pretrained(folder)
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(InputError, match="no valid JSON"):
        load_metadata(folder)
    (folder / CONFIG_FILE).write_text("{}")
    with pytest.raises(InputError, match="lacks format_version, architecture"):
        load_metadata(folder)


def test_an_interrupted_overwrite_does_not_look_complete(saved, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hip_model.export.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        save_pretrained(build(), saved[1], {})
    assert sorted(path.name for path in saved[1].iterdir()) == [WEIGHTS_FILE]


def test_only_models_of_this_package_and_plain_json_are_saved(tmp_path):
    with pytest.raises(InputError, match="cannot save a Linear"):
        save_pretrained(torch.nn.Linear(2, 2), tmp_path, {})
    with pytest.raises(InputError, match="plain JSON"):
        save_pretrained(build(), tmp_path, {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
