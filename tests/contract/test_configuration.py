"""Every verb's configuration composes into its typed options, and mistakes are named."""

from __future__ import annotations

import errno
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs.__main__ import VERBS, main
from jobs.cli import guarded
from pipeline.config import compose_config, load_options
from pipeline.config.compose import chosen_groups, group_choices
from pipeline.errors import UserError
from pipeline.evaluate.options import EvaluateOptions
from pipeline.train.options import PretrainOptions
from pipeline.tune.options import TuneOptions
from pipeline.tune.space import build_space

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"hip {verb}" in capsys.readouterr().out
    assert callable(importlib.import_module(f"jobs.{verb}").main)


def test_values_and_groups_arrive_typed() -> None:
    options = load_options(PretrainOptions, "pretrain", ["shards=/x", "model=hip_nano", "optim.betas=[0.9,0.99]"])
    assert options.model.name == "hip_nano"
    assert options.optim.betas == (0.9, 0.99)


def test_a_key_may_share_a_groups_name() -> None:
    options = load_options(EvaluateOptions, "evaluate", ["shards=/x", "model=models:/hip@champion"])
    assert options.model == "models:/hip@champion"


def test_keys_of_the_users_own_are_added_or_replace_a_presets() -> None:
    words = ["shards=/x", "search=training", "search.options={optim.weight_decay: [0, 1]}", "search.dials.depth=[1,2]"]
    search = load_options(TuneOptions, "tune", [*words, "model.overrides.regroup=reshape"]).search
    assert search.options == {"optim.weight_decay": [0, 1]}
    assert search.dials == {"depth": [1, 2]}
    added = load_options(TuneOptions, "tune", ["shards=/x", "search=training", "search.options.mask.policy=[tube]"])
    assert "mask.policy" in build_space(added.search, added).domains
    assert "optim.weight_decay" in build_space(added.search, added).domains
    weighted = load_options(PretrainOptions, "pretrain", ["shards=/x", "loss.weights.audio=2"])
    assert weighted.loss.weights == {"audio": 2.0}


def test_a_duration_that_is_given_takes_the_place_of_the_configurations() -> None:
    words = ["shards=/x", "experiment=mae_images"]
    for more, expected in (([], (None, None, 800.0)), (["duration.steps=9"], (9, None, None))):
        found = load_options(PretrainOptions, "pretrain", [*words, *more]).duration
        assert (found.steps, found.examples, found.epochs) == expected
    with pytest.raises(UserError, match="exactly one of steps, examples and epochs, got steps, epochs"):
        load_options(PretrainOptions, "pretrain", [*words, "duration.steps=9", "duration.epochs=2"])
    with pytest.raises(UserError, match="got none"):
        load_options(PretrainOptions, "pretrain", [*words, "duration.epochs=null"])


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_experiments_compose(name: str) -> None:
    verb = "finetune" if name.startswith("finetune") else "pretrain"
    assert compose_config(verb, ["shards=/x", f"experiment={name}", *(["init=null"] if verb == "finetune" else [])])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("modle=hip_16", "'model'"),
        ("optim.weight_decy=1", "optim.weight_decay"),
        ("model=hip_17", "'hip_16'"),
        ("optim=3", "unknown choice optim=3: valid: adamw"),
        ("optim=[3]", "unknown choice"),
        ("+model=3", "unknown choice model=3"),
        ("optim=null", "unknown choice optim=null"),
        ("experiment=videomea", "'videomae'"),
        ("experiment=finetune_small", "unknown choice"),
        ("mae_images", "'mae_images' is no setting"),
        ("seed=abc", "seed=abc"),
        ("seed=1,2", "seed=1,2: expected int"),
        ("engine.gradient_clip=nan", "engine.gradient_clip=nan: expected float, got nan"),
        ("duration.epochs=inf", "duration.epochs=inf: expected float, got inf"),
        ("seed=(3", r"seed=\(3: expected int"),
        ("optim.betas=0.9,0.95", r"optim.betas=0.9,0.95: expected a list, \[a,b,…\]"),
        ("mask.per_modality={audio", "^mask.per_modality={audio cannot be read .* needs quotes"),
        ("run.name='x", "^run.name='x cannot be read .* needs quotes"),
    ],
)
def test_a_mistake_names_the_way_out(override: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_options(PretrainOptions, "pretrain", ["shards=/x", override])


@pytest.mark.parametrize(
    ("verb", "override", "told"),
    [
        ("preprocess", "tracking.enabled=false", "this command has no 'tracking' group"),
        ("pretrain", "epochs=3", "did you mean 'duration.epochs'?"),
        ("pretrain", "engine.kindd=torch", "did you mean 'engine.kind'?"),
        ("pretrain", "lr=1", "valid: shards, storage, init"),
        ("pretrain", "experment=mae_images", "did you mean 'experiment'?"),
        ("preprocess", "scale=gpu", "scale takes no value here; set its keys: scale.workers"),
        ("preprocess", "model=3", "unknown key 'model'"),
        ("pretrain", "--config-name=pretran", "did you mean 'pretrain'?"),
        ("finetune", "experiment=videomae", "valid: finetune_perceiver_io"),
    ],
)
def test_a_key_is_suggested_where_it_is_no_guess(
    verb: str, override: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "shards=here", override]) == 2
    assert told in capsys.readouterr().err


def test_no_experiment_is_a_choice_too() -> None:
    plain, chosen = (
        load_options(PretrainOptions, "pretrain", ["shards=/x", *more]) for more in ([], ["experiment=null"])
    )
    assert plain == chosen


def test_hydras_own_signs_and_lists_are_kept() -> None:
    words = ["shards=/x", "~experiment", "+loss.weights.audio=2", "++seed=3", "optim=[lamb]"]
    options = load_options(PretrainOptions, "pretrain", words)
    assert (options.seed, options.optim.kind, options.loss.weights) == (3, "lamb", {"audio": 2.0})


@pytest.mark.parametrize("text", ["s3://b/date=2026-11-30/x", "/it's", "/a,b", "/a b, c='d'\\", "/x(1)", "/x{1}", "/é"])
def test_a_path_needs_no_quotes_but_the_shells(text: str) -> None:
    assert load_options(PretrainOptions, "pretrain", [f"shards={text}"]).shards == text
    assert load_options(EvaluateOptions, "evaluate", ["shards=/x", f"model={text}"]).model == text


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=12))
def test_any_name_of_a_file_arrives_as_it_is(name: str) -> None:
    assume("${" not in name)
    assert load_options(PretrainOptions, "pretrain", [f"shards=/{name}"]).shards == f"/{name}"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_offers_the_groups_that_can_be_chosen(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    listed = re.findall(r"^  (\w+): (.*)$", capsys.readouterr().out.partition("Groups (")[2].partition("\n\n")[0], re.M)
    assert [group for group, _ in listed] == sorted(chosen_groups(verb))
    for group, names in listed:
        assert names.split(", ") == group_choices(group, verb)


def test_a_required_key_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain"]) == 2
    assert "shards is required" in capsys.readouterr().err


def test_an_unknown_verb_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretran"]) == 2
    assert "'pretrain'" in capsys.readouterr().err


def test_a_refused_write_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    def fill_the_disk() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/tokens/train-00000.arrow")

    assert guarded(fill_the_disk) == 5
    assert "no space left while writing /data/tokens/train-00000.arrow" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"]])
def test_a_reader_that_has_gone_is_no_fault(arguments: list[str]) -> None:
    """``hip --help | head -1`` prints no traceback, also where the output waits in a buffer until the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "BrokenPipe" not in process.stderr.read()
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize("opened", ["nullcontext()", pytest.param("ray_session()", marks=pytest.mark.integration)])
@pytest.mark.parametrize("interrupts", ["SIG_DFL", "SIG_IGN"])
def test_a_terminated_command_closes_what_is_open(opened: str, interrupts: str) -> None:
    """Ray sets a handler of its own, which would end it with 15; what a script starts with ``&`` ignores Ctrl-C."""
    script = f"""
from contextlib import nullcontext
import os, signal, sys
from jobs.cli import guarded
from pipeline.ray_session import ray_session

def work():
    with {opened}:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            print("closed")

sys.exit(guarded(work))
"""
    start = f"import os, sys; from signal import *; signal(SIGINT, {interrupts}); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", start, sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (130, "closed\n"), ended.stderr
    assert "run the same command again" in ended.stderr
