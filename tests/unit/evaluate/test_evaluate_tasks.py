"""Each task on real shards and a real (untrained) model: the numbers, files and refusals that a user meets."""

import itertools
import json
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_data import AUDIO, IMAGE, ModalitySpec, example, write_dataset, write_model

from pipeline.errors import InfrastructureError, UserError
from pipeline.evaluate.head import load_head
from pipeline.evaluate.loaded import load_model
from pipeline.evaluate.options import EvaluateFigureOptions, MaskSweepOptions, ProbeOptions
from pipeline.evaluate.reading import spans
from pipeline.evaluate.runner import evaluate
from pipeline.storage import folder_here


def test_linear_probe_beats_chance_and_writes_one_page(options):
    pictures = EvaluateFigureOptions(examples=2)
    report = evaluate(options(task="linear_probe", probe=ProbeOptions(level="all"), figures=pictures))
    assert report.metrics["top1"].value > 0.7 > report.metrics["chance_top1"].value + 0.3
    assert report.metrics["top1"].low <= report.metrics["top1"].value <= report.metrics["top1"].high
    page = Path(report.html_path).read_text()
    assert "data:image/png;base64," in page
    assert "<script" not in page
    saved = json.loads(Path(report.json_path).read_text())
    assert saved["metrics"]["top1"]["value"] == report.metrics["top1"].value
    assert {"confusion", "per_class", "projection", "levels"} <= set(saved["figures"])
    assert all(Path(path).read_bytes()[:4] == b"\x89PNG" for path in saved["figures"].values())


def test_exported_probe_gives_the_same_scores_as_task_classification(options, tmp_path):
    target = tmp_path / "with_head"
    probed = evaluate(options(task="linear_probe", export=str(target), output=str(tmp_path / "a")))
    assert evaluate(options(task="linear_probe", export=str(target), output=str(tmp_path / "c"))).export == str(target)
    scored = evaluate(options(task="classification", model=str(target), output=str(tmp_path / "b")))
    assert probed.export == str(target)
    assert scored.metrics["top1"] == probed.metrics["top1"]
    head = load_head(target)
    assert head is not None
    assert head.label_names == ("red", "green", "blue")
    before, after = (load_model(folder).model.state_dict() for folder in (options().model, target))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_probe_is_exported_to_a_bucket(options, tmp_path):
    place = f"memory://bucket-{uuid.uuid4().hex[:8]}/with_head"
    probed = evaluate(options(task="linear_probe", export=place, output=str(tmp_path / "a")))
    assert probed.export == place
    with folder_here(place) as there:
        scored = evaluate(options(task="classification", model=str(there), output=str(tmp_path / "b")))
    assert scored.metrics["top1"] == probed.metrics["top1"]


def test_an_export_that_would_overwrite_something_else_is_refused_before_the_fit(options, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.evaluate.runner.run_task", lambda session: pytest.fail("fitted"))
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "deep" / "mine.txt").write_text("keep me")
    run = tmp_path / "run" / "checkpoints"  # a model deep in a folder does not make that folder a model's
    run.mkdir(parents=True)
    (run / "model.safetensors").write_text("weights")
    with_more = tmp_path / "with_more"
    (with_more / "plots").mkdir(parents=True)
    (with_more / "model.safetensors").write_text("weights")
    (with_more / "plots" / "mine.png").write_text("keep me")
    refused = {
        tmp_path / "notes": "other files",
        tmp_path / "run": "other files",
        with_more: "other files",
        tmp_path / "notes" / "deep" / "mine.txt": "is a file",
        Path(options().model): "own folder",
    }
    for target, says in refused.items():
        with pytest.raises(UserError, match=says):
            evaluate(options(task="linear_probe", export=str(target)))


def test_classification_without_a_head_says_how_to_get_one(options):
    with pytest.raises(UserError, match="has no head; run hip finetune"):
        evaluate(options(task="classification"))


def test_a_label_that_training_never_saw_is_named(options, tmp_path):
    target = tmp_path / "with_head"
    evaluate(options(task="linear_probe", export=str(target)))
    rows = {"train": [example(0, "train")], "validation": [example(i, "validation") for i in range(4)]}
    other = write_dataset(tmp_path / "other", rows, labels=("red", "green", "violet"))
    with pytest.raises(UserError, match="never saw: violet"):
        evaluate(options(task="classification", model=str(target), shards=other, output=str(tmp_path / "b")))


def test_neighbours_beat_chance(options):
    assert evaluate(options(task="knn")).metrics["top1"].value > 0.6


def test_multilabel_scores_clips_not_windows(options, tmp_path):
    def rows(split, count):
        return [example(i, split, labels=(i % 3, 1) if i % 3 != 1 else (1,)) for i in range(count)]

    shards = write_dataset(tmp_path / "many", {"train": rows("train", 60), "validation": rows("validation", 30)})
    report = evaluate(options(task="linear_probe", shards=shards))
    assert set(report.metrics) == {"mean_average_precision", "roc_area", "d_prime"}
    assert report.metrics["mean_average_precision"].count == 15  # two windows a clip
    assert report.metrics["roc_area"].value > 0.7


def test_reconstruction_of_an_untrained_model_equals_the_mean_predictor(options):
    report = evaluate(options(task="reconstruction", mask=MaskSweepOptions(ratios=(0.5, 0.85))))
    for name in ("image", "audio"):
        # A fresh HiP reconstructs exactly the mean, so gain is 0 and the error about the variance.
        assert report.metrics[f"gain_over_mean/{name}/mask_0.85"].value == pytest.approx(0, abs=1e-4)
        assert report.metrics[f"error/{name}/mask_0.85"].value == pytest.approx(1, abs=0.15)


def test_an_example_of_which_nothing_was_hidden_is_not_scored_as_perfect(options, tmp_path):
    """One token: in some examples it is hidden, in others it is seen, and then there is nothing to reconstruct."""
    kind = ModalitySpec("kind", (1,), 1, "uint8")
    rows = [example(i, "validation") for i in range(12)]
    for index, row in enumerate(rows):
        del row.arrays["audio"]
        row.arrays["kind"] = np.full((1, 1), index % 2 * 2, np.uint8)
    shards = write_dataset(tmp_path / "kinds", {"train": rows, "validation": rows}, (IMAGE, kind))
    model = write_model(tmp_path / "model_of_kinds", shards)
    report = evaluate(options(shards=shards, model=model, task="reconstruction", mask=MaskSweepOptions(ratios=(0.5,))))
    assert report.metrics["error/kind/mask_0.5"].value == pytest.approx(1.0)  # an untrained model answers the mean


def test_retrieval_reports_both_directions_against_chance(options):
    report = evaluate(options(task="retrieval"))
    assert {"image_to_audio/recall_at_1", "audio_to_image/recall_at_10"} <= set(report.metrics)
    assert report.metrics["image_to_audio/recall_at_10"].value > 10 / 30


def test_interrupted_embedding_continues_from_its_pieces(options, monkeypatch, tmp_path):
    from pipeline.evaluate import embed

    original = embed.compute_pieces

    def stop_after_two(*arguments):
        yield from itertools.islice(original(*arguments), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "compute_pieces", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options(task="knn"))
    pieces = sorted((tmp_path / "evaluation").rglob("rows_*.npz"))
    stamps = [piece.stat().st_mtime_ns for piece in pieces]
    monkeypatch.setattr(embed, "compute_pieces", original)
    evaluate(options(task="knn"))
    assert len(pieces) == 2
    assert [piece.stat().st_mtime_ns for piece in pieces] == stamps


@pytest.mark.parametrize("failing", [0, -1], ids=["first piece", "last piece"])
def test_a_piece_that_cannot_be_saved_ends_the_evaluation(options, monkeypatch, failing):
    from pipeline.evaluate import embed
    from pipeline.evaluate.session import open_session

    wanted = options(task="knn")
    session = open_session(wanted, wanted.output)
    bounds = spans(session.count("train"), wanted.embed.chunk_examples)[failing]
    original = embed.save_piece

    def save(folder, piece_bounds, piece):
        if piece_bounds == bounds:
            raise InfrastructureError("No space left on device")
        original(folder, piece_bounds, piece)

    monkeypatch.setattr(embed, "save_piece", save)
    with pytest.raises(InfrastructureError, match="No space left"):
        session.embeddings("train")


@pytest.mark.parametrize("task", ["knn", "linear_probe", "reconstruction"])
def test_a_checkpoint_of_a_run_in_training_may_be_deleted_meanwhile(options, model_folder, monkeypatch, tmp_path, task):
    from pipeline.evaluate import runner

    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    shutil.copytree(model_folder, checkpoint)
    original = runner.run_task

    def after_the_next_saves(session):
        shutil.rmtree(checkpoint)
        return original(session)

    monkeypatch.setattr(runner, "run_task", after_the_next_saves)
    assert evaluate(options(model=str(checkpoint), task=task)).metrics


@pytest.mark.parametrize(("name", "blocks"), [("hip_nano", 3), ("io_mini", 1), ("perceiver_tiny", 3)])
def test_every_block_can_be_probed(options, tmp_path, shards, name, blocks):
    from pipeline.evaluate.session import open_session

    wanted = options(model=write_model(tmp_path / name, shards, name))
    for level in range(blocks):
        session = open_session(replace(wanted, probe=ProbeOptions(level=str(level))), wanted.output)
        assert session.level_choices() == [(level,)]
        assert len(session.embeddings("validation", level + 1).levels) == level + 1
    with pytest.raises(UserError, match=f"this model has blocks 0 to {blocks - 1}"):
        open_session(replace(wanted, probe=ProbeOptions(level=str(blocks))), wanted.output).level_choices()


def test_embeddings_do_not_depend_on_batch_or_piece_size(options):
    from pipeline.evaluate.options import EmbedOptions
    from pipeline.evaluate.session import open_session

    found = []
    for index, sizes in enumerate(((8, 20), (7, 60))):
        wanted = options(embed=EmbedOptions(batch_size=sizes[0], chunk_examples=sizes[1]))
        session = open_session(wanted, wanted.output + str(index))
        found.append(session.embeddings("train"))
    for pool in ("mean", "mean_std", "groups"):
        left, right = (each.features((0, 1), pool) for each in found)
        np.testing.assert_allclose(left, right, atol=1e-6)
    assert found[0].labels == found[1].labels


def test_absent_modality_is_hidden_not_zero(options, tmp_path):
    rows = [example(0, "train"), example(1, "train", without="audio")]
    shards = write_dataset(tmp_path / "partial", {"train": rows, "validation": rows})
    model = write_model(tmp_path / "partial_model", shards)
    from pipeline.evaluate.embed import latents_of
    from pipeline.evaluate.session import open_session

    session = open_session(options(shards=shards, model=model), str(tmp_path / "out"))
    batch = session.reader("train").read(np.array([1]))
    before = latents_of(session.loaded, session.loaded.normalise(batch.arrays), batch.present, 2)[-1]
    batch.arrays["audio"][:] = 12345  # what lies in an absent modality's slots must not matter
    after = latents_of(session.loaded, session.loaded.normalise(batch.arrays), batch.present, 2)[-1]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_an_example_that_lacks_a_modality_is_embedded_alike_alone_and_among_others(options, tmp_path):
    from pipeline.evaluate.embed import EmbedRequest, embed_rows, latents_of
    from pipeline.evaluate.head import pooled_parts
    from pipeline.evaluate.session import open_session

    rows = [example(index, "train", **({"without": "audio"} if index in (2, 5) else {})) for index in range(7)]
    shards = write_dataset(tmp_path / "partial", {"train": rows, "validation": rows})
    model = write_model(tmp_path / "partial_model", shards)
    session = open_session(options(shards=shards, model=model), str(tmp_path / "out"))
    batch = session.reader("train").read(np.arange(7))
    inputs = session.loaded.normalise(batch.arrays)
    request = EmbedRequest(shards, "train", 7, session.loaded.num_encoder_levels)
    for batch_size in (1, 2, 7):  # of two, some batches hide nothing
        found = embed_rows(session.loaded, batch, inputs, request, batch_size)
        for row in range(7):
            alone = {name: values[row : row + 1] for name, values in inputs.items()}
            latents = latents_of(session.loaded, alone, batch.part(row, row + 1).present, request.level_count)
            for level in range(request.level_count):
                for part, values in pooled_parts(latents[level]).items():
                    np.testing.assert_allclose(found[f"{part}_{level}"][row], values[0].numpy(), atol=1e-6)
        np.testing.assert_array_equal(found["present_audio"], [index not in (2, 5) for index in range(7)])


@pytest.mark.parametrize(
    ("specs", "named"),
    [
        ((IMAGE,), "the model reads 'audio', the data has image"),
        ((ModalitySpec("image", (4, 16), 3, "uint8", sampling=IMAGE.sampling), AUDIO), r"image\.shape"),
        ((IMAGE, ModalitySpec("audio", (64,), 1, "int16", sampling={"sample_rate": 16000})), r"audio\.sampling"),
    ],
)
def test_other_data_is_refused_with_the_difference(options, tmp_path, specs, named):
    rows = [example(i, "train") for i in range(3)]
    for row in rows:
        row.arrays.update({name: None for name in ("audio",) if name not in [spec.name for spec in specs]})
        if len(specs) == 1:
            row.arrays.pop("audio")
    shards = write_dataset(tmp_path / "other", {"train": rows, "validation": rows}, specs)
    with pytest.raises(UserError, match=named):
        evaluate(options(shards=shards))


def test_missing_model_and_corrupt_weights_are_named(options, tmp_path, model_folder):
    with pytest.raises(UserError, match=r"there is no model\.safetensors"):
        evaluate(options(model=str(tmp_path / "nothing")))
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(model_folder).iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be opened"):
        evaluate(options(model=str(broken)))


def test_labels_are_escaped_in_the_report(options, tmp_path):
    nasty = ("<script>alert(1)</script>", "a & b", "$x$")
    rows = {split: [example(i, split) for i in range(count)] for split, count in (("train", 30), ("validation", 12))}
    shards = write_dataset(tmp_path / "nasty", rows, labels=nasty)
    page = Path(evaluate(options(shards=shards)).html_path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_unlabelled_data_is_refused(options, tmp_path):
    rows = [example(i, "train", labels=()) for i in range(6)]
    shards = write_dataset(tmp_path / "bare", {"train": rows, "validation": rows})
    with pytest.raises(UserError, match="has no labels"):
        evaluate(options(shards=shards))


@pytest.mark.parametrize("name", ["hip_nano", "hip_micro", "io_mini", "perceiver_tiny"])
def test_attention_reaches_all_tokens_and_sums_to_one_at_most(options, tmp_path, shards, name):
    from pipeline.evaluate.attention import encoder_attention, token_attention
    from pipeline.evaluate.session import open_session

    model = write_model(tmp_path / name, shards, name)
    session = open_session(options(model=model), str(tmp_path / "out"))
    batch = session.reader("validation").read(np.arange(1))
    levels = encoder_attention(session.loaded.model, session.loaded.normalise(batch.arrays))
    assert len(levels) == session.loaded.num_encoder_levels
    top = len(levels) - 1
    shares = {n: token_attention(session.loaded.model, levels, top, np.arange(4), n) for n in ("image", "audio")}
    # The two modalities share all attention between them: 64 tokens each and no padding in these groupings.
    total = shares["image"].sum(1) + shares["audio"].sum(1)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    assert (shares["image"] > 0).all()


def test_attention_of_the_first_level_stays_in_its_group(options, tmp_path):
    from pipeline.evaluate.attention import encoder_attention, token_attention
    from pipeline.evaluate.session import open_session

    session = open_session(options(), str(tmp_path / "out"))
    batch = session.reader("validation").read(np.arange(1))
    levels = encoder_attention(session.loaded.model, session.loaded.normalise(batch.arrays))
    plan = session.loaded.model.group_plan()["image"]
    first = token_attention(session.loaded.model, levels, 0, np.array([0]), "image")[0]
    assert (first[: plan.group_tokens] > 0).all()
    assert (first[plan.group_tokens :] == 0).all()
