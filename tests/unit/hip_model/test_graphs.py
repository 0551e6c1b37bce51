"""Exported graphs give the model's own outputs, for any batch size, after a round trip through a file."""

import pytest
import torch

from hip_model import ClassBottleneckHiP, HiPConfig, Modality, build_model
from hip_model.graphs import export_encoder, export_reconstruction
from hip_model.perceiver import PERCEIVER_VARIANTS, Perceiver

MODALITIES = (Modality("image", 50, 3, (5, 10)), Modality("audio", 17, 1, (17,)))


def build(kind):
    torch.manual_seed(0)
    if kind == "perceiver_tiny":
        model = Perceiver(PERCEIVER_VARIANTS[kind], MODALITIES)
    elif kind == "labels":
        model = ClassBottleneckHiP(HiPConfig.variant("nano"), MODALITIES, (Modality("label", 1, 4),))
    else:
        model = build_model(kind, MODALITIES)
    for layer in (*model.unembed.values(), *getattr(model, "label_unembed", {}).values()):
        torch.nn.init.normal_(layer.weight)
    return model


def inputs(model, batch):
    entries = (*model.modalities, *getattr(model, "labels", ()))
    return {m.name: torch.randn(batch, m.num_tokens, m.num_channels) for m in entries}


@pytest.mark.parametrize("kind", ["labels", "io_mini", "perceiver_tiny"])
def test_reconstruction_graphs_equal_the_model(kind):
    model = build(kind)
    graph = export_reconstruction(model).module()
    assert model.training
    given = inputs(model, 5)
    with torch.no_grad():
        found, expected = graph(given), model.eval()(given).reconstruction
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)
        assert value.any()


def test_an_encoder_graph_survives_a_file(tmp_path):
    model = build("hip_nano").eval()
    torch.export.save(export_encoder(model), tmp_path / "encoder.pt2")
    encoder = torch.export.load(tmp_path / "encoder.pt2").module()
    for batch in (1, 5):
        given = inputs(model, batch)
        with torch.no_grad():
            for found, expected in zip(encoder(given), model.encode(given), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_graph_that_differs_is_refused(monkeypatch):
    model = build("io_mini")
    monkeypatch.setattr("hip_model.graphs._TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="differs from the model's by"):
        export_encoder(model)
