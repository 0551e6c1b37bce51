"""What holds for every HiP: the naive twin, isolation of groups, dropping and masking, padding, initial state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hip_model import ConfigError, HiP, HiPConfig, InputError, Modality, TokenSelection, build_model
from hip_model.grouping import GroupPlan, plan_groups
from hip_model.kernels.naive import naive_forward
from hip_model.selection import EMPTY_SLOT
from hip_model.token_runs import run_groups

MODALITIES = [Modality("video", 101, 3), Modality("audio", 64, 2), Modality("lidar", 7, 4)]


def small_config(**changes: object) -> HiPConfig:
    fields: dict[str, object] = {
        "embedding_channels": 12,
        "num_groups": (6, 2, 1, 2, 6),
        "num_latents": (4, 6, 8, 6, 4),
        "num_channels": (16, 24, 32, 24, 8),
        "num_self_attention_layers": (1, 1, 2, 0, 1),
        "num_self_attention_heads": (2, 3, 4, 3, 2),
        "num_cross_attention_heads": (1, 2, 1, 1, 1),
        "cross_attention_widening": (1, 1, 2, 1, 1),
        "self_attention_widening": (4, 2, 4, 4, 4),
    }
    return HiPConfig(**(fields | changes))  # type: ignore[arg-type]


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter away from its initial value, so that zeros and unit scales hide nothing; in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.double()


def random_inputs(modalities: list[Modality], batch: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.randn(batch, m.num_tokens, m.num_channels, generator=generator) for m in modalities}


def random_selection(
    plan: GroupPlan, batch: int, ratio: float, seed: int, shared_groups: bool = False
) -> TokenSelection:
    """Independent visible tokens, the rest queried; empty slots wherever a group is short."""
    generator = torch.Generator().manual_seed(seed)
    visible, queries = {}, {}
    for part in plan.modalities:
        keep = round(part.group_tokens * ratio)
        groups = 1 if shared_groups else part.groups
        order = torch.rand(batch, groups, part.group_tokens, generator=generator).argsort(-1)
        slots = [order[..., :keep].sort(-1).values, order[..., keep:].sort(-1).values]
        if not shared_groups:
            first = torch.arange(groups).view(1, -1, 1) * part.group_tokens
            slots = [s.masked_fill(s + first >= part.num_tokens, EMPTY_SLOT) for s in slots]
        visible[part.name], queries[part.name] = slots
    return TokenSelection(visible, queries)


def assert_same(model: HiP, inputs: dict[str, torch.Tensor], selection: TokenSelection | None) -> None:
    """Outputs and every parameter's gradient agree with the naive twin; empty query slots do not count."""
    inputs = {name: values.double() for name, values in inputs.items()}
    weights: dict[str, torch.Tensor] = {}
    results = []
    for run in (model, lambda *arguments: naive_forward(model, *arguments)):
        model.zero_grad()
        output = run(inputs, selection)
        loss = output.latents[-1].sum() * 0.01
        for name, answer in output.reconstruction.items():
            if name not in weights:
                weights[name] = torch.randn(answer.shape, generator=torch.Generator().manual_seed(3))
                if selection is not None:
                    slots = selection.queries[name]
                    groups = model.group_plan()[name]
                    first = torch.arange(groups.groups).view(1, -1, 1) * groups.group_tokens
                    real = (slots >= 0) & (slots + first < groups.num_tokens)
                    weights[name] *= real.expand(answer.shape[0], -1, -1).flatten(1).unsqueeze(-1)
            loss = loss + (answer * weights[name]).sum()
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((output, gradients, loss.detach()))
    (fast, fast_gradients, fast_loss), (naive, naive_gradients, naive_loss) = results
    for found, expected in zip(fast.latents, naive.latents, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast_loss, naive_loss, rtol=1e-5, atol=1e-4)
    for name, expected in naive_gradients.items():
        assert fast_gradients[name] is not None, f"{name} has no gradient"
        scale = max(float(expected.norm()), 1.0)
        torch.testing.assert_close(
            fast_gradients[name], expected, rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("regroup", ["reshape", "transpose_reshape"])
@pytest.mark.parametrize("ratio", [None, 0.15, 0.6])
def test_the_model_equals_its_naive_twin_forward_and_backward(
    mask_padding: bool, regroup: str, ratio: float | None
) -> None:
    config = small_config(mask_padding=mask_padding, regroup=regroup, position_projection=ratio is None)
    model = randomised(HiP(config, MODALITIES)).eval()
    selection = None if ratio is None else random_selection(model.group_plan(), 2, ratio, seed=5)
    assert_same(model, random_inputs(MODALITIES), selection)


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    groups=st.sampled_from([3, 4, 6]),
    latents=st.sampled_from([2, 6]),
    shared=st.booleans(),
    ratio=st.sampled_from([None, 0.0, 0.25, 1.0]),
    seed=st.integers(0, 99),
)
def test_random_shapes_equal_the_naive_twin(
    tokens: list[int], groups: int, latents: int, shared: bool, ratio: float | None, seed: int
) -> None:
    modalities = [Modality(f"m{index}", count, 1 + index) for index, count in enumerate(tokens)]
    config = HiPConfig(
        embedding_channels=8,
        num_groups=(groups, 1, groups),
        num_latents=(latents, groups, latents),
        num_channels=(12, 16, 12),
        num_self_attention_layers=(1, 1, 1),
        num_self_attention_heads=(2, 2, 2),
        num_cross_attention_heads=(1, 1, 1),
        cross_attention_widening=(1, 1, 1),
        self_attention_widening=(2, 2, 2),
        mask_padding=seed % 2 == 0,
    )
    model = randomised(HiP(config, modalities), seed).eval()
    selection = None if ratio is None else random_selection(model.group_plan(), 2, ratio, seed, shared)
    assert_same(model, random_inputs(modalities, seed=seed), selection)


def test_one_selection_serves_a_whole_batch_and_all_groups() -> None:
    modalities = [Modality("image", 60, 3)]
    model = randomised(HiP(small_config(), modalities)).eval()
    visible, queries = torch.tensor([[[1, 4, 7]]]), torch.tensor([[[0, 2, 3, 5, 6, 8, 9]]])
    inputs = random_inputs(modalities)
    one = TokenSelection({"image": visible}, {"image": queries}, has_empty_slots=False)
    spelled_out = TokenSelection({"image": visible.expand(2, 6, -1)}, {"image": queries.expand(2, 6, -1)})
    found, expected = model(inputs, one), model(inputs, spelled_out)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction)
    assert_same(model, inputs, one)


def test_a_fresh_model_reconstructs_zero_and_learns_only_its_unembedding_first() -> None:
    model = HiP(small_config(), MODALITIES)
    inputs = random_inputs(MODALITIES)
    output = model(inputs)
    loss = sum((output.reconstruction[name] - inputs[name]).square().mean() for name in inputs)
    assert all(bool((answer == 0).all()) for answer in output.reconstruction.values())
    assert float(loss.detach()) == pytest.approx(float(sum(values.square().mean() for values in inputs.values())))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()) == name.startswith("unembed."), name


def test_a_token_reaches_only_its_own_group_of_block_0() -> None:
    model = randomised(HiP(small_config(), MODALITIES)).eval()
    inputs = random_inputs(MODALITIES)
    part = model.group_plan()["audio"]
    changed = {name: values.clone() for name, values in inputs.items()}
    changed["audio"][:, part.group_tokens + 1] += 1.0
    difference = (model.encode(inputs)[0] - model.encode(changed)[0]).abs().amax(dim=(0, 2, 3))
    assert (difference > 0).nonzero().flatten().tolist() == [part.offset + 1]


def test_order_inside_a_group_does_not_matter_and_order_across_groups_does() -> None:
    modalities = [Modality("image", 60, 3)]
    model = randomised(HiP(small_config(), modalities)).eval()
    inputs = random_inputs(modalities)
    before = model.encode(inputs)[0]
    for order, same in ((_swap(60, 2, 7), True), (_swap(60, 2, 12), False)):
        moved = HiP(model.config, modalities).double().eval()
        moved.load_state_dict(model.state_dict())
        with torch.no_grad():
            moved.positions["image"].weight.copy_(model.positions["image"].weight[order])
        after = moved.encode({"image": inputs["image"][:, order]})[0]
        assert torch.allclose(before, after, atol=1e-5) == same


def _swap(tokens: int, one: int, other: int) -> torch.Tensor:
    order = torch.arange(tokens)
    order[[one, other]] = order[[other, one]]
    return order


def test_a_group_that_sees_nothing_gets_zeros_from_attention() -> None:
    modalities = [Modality("image", 60, 3)]
    model = randomised(HiP(small_config(mask_padding=True), modalities)).eval()
    empty = torch.full((1, 6, 2), EMPTY_SLOT)
    selection = TokenSelection({"image": empty}, {"image": empty})
    latents = model.encode(random_inputs(modalities), selection)[0]
    assert torch.isfinite(latents).all()
    assert torch.equal(latents, model.encode(random_inputs(modalities, seed=9), selection)[0])


def test_masked_padding_is_inert_and_unmasked_padding_is_not() -> None:
    inputs = random_inputs(MODALITIES)
    for mask_padding in (True, False):
        model = randomised(HiP(small_config(mask_padding=mask_padding), MODALITIES)).eval()
        alone = [MODALITIES[1]]
        # Audio alone over as many groups as it owns beside the others has the same groups, without group padding.
        part = model.group_plan()["audio"]
        assert part.group_padding > 0
        block = model.blocks[0]
        beside = model.encode(inputs)[0][:, part.offset : part.offset + part.groups]
        lone = HiP(
            small_config(num_groups=(part.groups, 1, 1, 1, part.groups), num_latents=(4, 6, 8, 6, 4)), alone
        ).eval()
        state = {
            k: v
            for k, v in model.state_dict().items()
            if k in lone.state_dict() and v.shape == lone.state_dict()[k].shape
        }
        lone.double().load_state_dict(state, strict=False)
        with torch.no_grad():
            rows = slice(part.offset * block.num_latents, (part.offset + part.groups) * block.num_latents)
            lone.blocks[0].latents.weight.copy_(block.latents.weight[rows])
        found = lone.encode({"audio": inputs["audio"]})[0]
        assert torch.allclose(found, beside, atol=1e-5) == mask_padding


def test_hip_256_on_audio_and_video_fills_all_groups_exactly() -> None:
    modalities = [Modality("video", 8 * 224 * 224, 3), Modality("audio", 122_880, 1)]
    plan = plan_groups(256, modalities)
    assert sum(m.num_tokens for m in modalities) == 524_288
    assert [part.groups for part in plan.modalities] == [196, 60]
    assert plan.group_length == 2_048
    assert all(part.final_padding == part.group_padding == 0 for part in plan.modalities)


def test_modality_order_is_the_constructors_not_the_dicts() -> None:
    model = randomised(HiP(small_config(), MODALITIES)).eval()
    inputs = random_inputs(MODALITIES)
    reordered = {name: inputs[name] for name in reversed(list(inputs))}
    torch.testing.assert_close(model(inputs).reconstruction, model(reordered).reconstruction)
    assert list(model(reordered).reconstruction) == [modality.name for modality in MODALITIES]


def test_encode_stops_at_the_processor() -> None:
    model = build_model("hip_nano", [Modality("image", 64, 3)]).eval()
    inputs = random_inputs([Modality("image", 64, 3)])
    encoded, whole = model.encode(inputs), model(inputs).latents
    assert [tuple(latents.shape) for latents in encoded] == [(2, 4, 16, 32), (2, 1, 16, 64)]
    for found, expected in zip(encoded, whole, strict=False):
        assert torch.equal(found, expected)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    gradients = []
    for checkpointing in ("none", "blocks"):
        torch.manual_seed(0)
        model = randomised(HiP(small_config(activation_checkpointing=checkpointing), MODALITIES)).train()
        sum(answer.sum() for answer in model(random_inputs(MODALITIES)).reconstruction.values()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ratio", [None, 0.3])
def test_a_large_input_is_worked_through_in_runs_of_groups(
    ratio: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limits in ("_CPU_RUNS", "_CPU_QUERY_RUNS"):
        monkeypatch.setattr(f"hip_model.token_runs.{limits}", (1, 40))
    model = randomised(HiP(small_config(), MODALITIES)).eval()
    plan = model.group_plan()
    assert [run_groups(2, part, None, torch.device("cpu")) for part in plan.modalities] == [1, 1, 1]
    inputs = random_inputs(MODALITIES)
    assert_same(model, inputs, None if ratio is None else random_selection(plan, 2, ratio, seed=4))
    for limits in ("_CPU_RUNS", "_CPU_QUERY_RUNS"):
        monkeypatch.setattr(f"hip_model.token_runs.{limits}", (1, 160))
    assert run_groups(2, plan["video"], None, torch.device("cpu")) == 2
    # Only what takes part counts: with few visible tokens, more groups at once.
    few = torch.zeros(2, 1, plan["video"].group_tokens // 4, dtype=torch.int64)
    assert run_groups(2, plan["video"], few, torch.device("cpu")) > 2
    assert_same(model, inputs, None if ratio is None else random_selection(plan, 2, ratio, seed=4, shared_groups=True))


def test_masked_gradients_are_the_same_bits_every_time() -> None:
    model = randomised(HiP(small_config(), MODALITIES)).eval()
    selection = random_selection(model.group_plan(), 2, 0.3, seed=4)
    runs = []
    for _ in range(2):
        model.zero_grad()
        sum(
            answer.square().sum() for answer in model(random_inputs(MODALITIES), selection).reconstruction.values()
        ).backward()
        runs.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("kind", ["fourier", "mixed"])
def test_fourier_positions_for_all_or_some_modalities(kind: str) -> None:
    modalities = [Modality("image", 48, 3, shape=(6, 8)), Modality("audio", 20, 1, shape=(20,))]
    position = "fourier" if kind == "fourier" else {"image": "fourier", "audio": "learned"}
    model = randomised(HiP(small_config(position=position, fourier_bands=4), modalities)).eval()
    assert_same(model, random_inputs(modalities), random_selection(model.group_plan(), 2, 0.3, seed=1))
    assert "positions.image.project.weight" in model.state_dict()
    assert ("positions.audio.weight" in model.state_dict()) == (kind == "mixed")
    with pytest.raises(ConfigError, match="'points' has no shape; Fourier positions need its axes"):
        HiP(small_config(position="fourier"), [Modality("points", 30, 3)])


def test_processor_latents_are_drawn_in_training_and_all_used_in_evaluation() -> None:
    config = small_config(processor_latents_eval=16)
    model = randomised(HiP(config, MODALITIES))
    inputs = random_inputs(MODALITIES)
    assert model.train().encode(inputs)[-1].shape == (2, 1, 8, 32)
    assert model.eval().encode(inputs)[-1].shape == (2, 1, 16, 32)
    rows = model.train().blocks[2]._queries(2)
    table = model.blocks[2].latents.weight
    chosen = [[int((table == row).all(-1).nonzero()) for row in example[0]] for example in rows.detach()]
    assert all(len(set(example)) == 8 for example in chosen)
    assert chosen[0] != chosen[1]


def test_drop_path_drops_whole_examples_without_rescaling() -> None:
    layer = HiP(small_config(drop_path=0.5), MODALITIES).blocks[0].self_attention[0].train()
    torch.manual_seed(0)
    kept, _ = layer._drop(torch.ones(64, 3, 2, 2), None)
    per_example = kept.flatten(1)
    assert set(per_example.unique().tolist()) == {0.0, 1.0}
    assert bool((per_example.amax(1) == per_example.amin(1)).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x | {"audio": x["audio"][:, :-1]}, r"'audio' has shape \[2, 63, 2\].*\[batch, 64, 2\]"),
        (lambda x: x | {"audio": x["audio"][..., :1]}, r"'audio' has shape \[2, 64, 1\]"),
        (lambda x: x | {"audio": x["audio"].int()}, "'audio' has dtype torch.int32"),
        (lambda x: x | {"audio": x["audio"][:1]}, "same batch size"),
        (lambda x: {"audio": x["audio"]}, r"inputs are \['audio'\], this model takes"),
        (lambda x: x | {"audio": x["audio"].masked_fill(x["audio"] > 2, float("nan"))}, "'audio' has .* NaN"),
        (lambda x: x | {"audio": x["audio"].to("meta")}, "'audio' is on meta"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: object, message: str) -> None:
    model = HiP(small_config(), MODALITIES)
    with pytest.raises(InputError, match=message):
        model(change(random_inputs(MODALITIES)))  # type: ignore[operator]


def test_infinity_is_not_nan() -> None:
    model = HiP(small_config(), MODALITIES)
    inputs = random_inputs(MODALITIES)
    inputs["video"][0, 0, 0] = float("inf")
    model.check_inputs(inputs)
