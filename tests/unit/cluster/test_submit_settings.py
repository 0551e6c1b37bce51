"""What a submission is made of: its own settings and the verb's, its id, its places, and nothing secret."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.submit import main, split_arguments
from pipeline.cluster.submit import latest_id, next_id, prepare, runtime_environment
from pipeline.cluster.submit_options import SubmitOptions
from pipeline.cluster.submit_verbs import SENT_VERBS, submission_base, value_of, verb_options
from pipeline.config.build import known_keys
from pipeline.errors import UserError

PRETRAIN = ["shards=s3://b/clips", "storage=s3://b/runs", "run.name=first", "tracking.uri=http://mlflow:5000"]


def job(status: str) -> Any:
    return SimpleNamespace(status=SimpleNamespace(value=status))


def refused(settings: list[str], verb: str = "pretrain", **own: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepare(SubmitOptions(job=verb, **own), settings)
    return str(caught.value)


def test_own_settings_are_parted_from_the_verbs() -> None:
    action, own, overrides = split_arguments(
        ["job=pretrain", "+env.A=1", "shards=/x", "~experiment", "kuberay.name=a", "+tokens=demo", "dry_run=true"]
    )
    assert action == "submit"
    assert own == ["job=pretrain", "+env.A=1", "kuberay.name=a", "dry_run=true"]
    assert overrides == ["shards=/x", "~experiment", "+tokens=demo"]
    assert split_arguments(["logs", "id=a"])[0] == "logs"


@pytest.mark.parametrize("arguments", [["stats"], ["logs", "stop"], ["--force"]])
def test_unknown_words_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"valid: |unknown flag"):
        split_arguments(arguments)


@pytest.mark.parametrize("verb", sorted(SENT_VERBS))
def test_no_setting_of_a_verb_is_taken_for_one_of_submit(verb: str) -> None:
    module, _, name = SENT_VERBS[verb].options.partition(":")
    options = getattr(importlib.import_module(module), name)
    keys = known_keys(options)
    shared = {key.partition(".")[0] for key in keys} & {key.partition(".")[0] for key in known_keys(SubmitOptions)}
    assert shared <= {"dry_run"}
    for key in (*SENT_VERBS[verb].places, *SENT_VERBS[verb].names, *SENT_VERBS[verb].identity):
        assert key in keys


def test_the_id_is_that_of_the_run() -> None:
    named = prepare(SubmitOptions(job="pretrain"), PRETRAIN)
    other_settings = prepare(SubmitOptions(job="pretrain"), [*PRETRAIN, "optim.weight_decay=0.1"])
    other_place = prepare(SubmitOptions(job="pretrain"), [*PRETRAIN, "storage=s3://b/other"])
    assert named.base.startswith("hip-pretrain-first-")
    assert other_settings.base == named.base
    assert other_place.base != named.base
    unnamed = [setting for setting in PRETRAIN if not setting.startswith("run.name")]
    one = submission_base("pretrain", verb_options("pretrain", unnamed))
    two = submission_base("pretrain", verb_options("pretrain", [*unnamed, "seed=1"]))
    assert one != two
    assert one.startswith("hip-pretrain-clips-")


def test_a_run_that_goes_on_is_not_sent_twice() -> None:
    assert next_id("hip-a", {}, "http://h") == "hip-a-1"
    ended = {"hip-a-1": job("FAILED"), "hip-a-10": job("STOPPED"), "hip-b-20": job("RUNNING"), "other": job("RUNNING")}
    assert next_id("hip-a", ended, "http://h") == "hip-a-11"
    for status in ("PENDING", "RUNNING"):
        with pytest.raises(UserError, match=r"already as hip-a-2.*hip submit logs id=hip-a-2 address=http://h"):
            next_id("hip-a", {"hip-a-2": job(status)}, "http://h")


def test_an_id_may_be_given_without_its_attempt() -> None:
    jobs = {"hip-a-9": job("FAILED"), "hip-a-10": job("RUNNING")}
    assert latest_id("hip-a", jobs) == "hip-a-10"
    assert latest_id("hip-a-9", jobs) == "hip-a-9"
    with pytest.raises(UserError, match="no such job"):
        latest_id("hip-c", jobs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([*PRETRAIN, "storage=hip-runs"], "storage=hip-runs is relative"),
        ([*PRETRAIN, "shards='~/clips'"], "shards=~/clips is relative"),
        ([*PRETRAIN, "shards=../clips"], "is relative"),
        ([*PRETRAIN, "ray.address=ray://x:1"], "ray.address"),
        ([*PRETRAIN, "optim.weight_decy=1"], "optim.weight_decay"),
        ([*PRETRAIN, "scale.workers=3"], "not a multiple"),
        (PRETRAIN[:3], "tracking.uri="),
    ],
)
def test_what_the_cluster_could_not_use_is_refused_here(
    settings: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert message in refused(settings)


def test_a_runs_name_is_no_place() -> None:
    settings = ["shards=/data/a", "storage=/data/runs", "model=first"]
    assert prepare(SubmitOptions(job="evaluate"), settings).local_places == ("shards=/data/a", "storage=/data/runs")
    assert "model=./first is relative" in refused([*settings, "model=./first"], "evaluate")


def test_the_tracking_server_may_be_known_to_the_cluster_only() -> None:
    given = SubmitOptions(job="pretrain", secrets=("MLFLOW_TRACKING_URI",))
    assert prepare(given, PRETRAIN[:3]).verb == "pretrain"
    given = SubmitOptions(job="pretrain", env={"MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    assert prepare(given, PRETRAIN[:3]).verb == "pretrain"


def test_verbs_that_cannot_be_sent_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["address=http://127.0.0.1:1"]) == 2
    assert "job is required" in capsys.readouterr().err
    assert main(["job=pretran", "address=http://127.0.0.1:1"]) == 2
    assert "'pretrain'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        ["tracking.uri=http://me:hunter2@mlflow:5000"],
        ["shards=s3://b/x?access_key=hunter2"],
        ["model.overrides={a: AKIAABCDEFGHIJKLMNOP}"],
    ],
)
def test_a_credential_in_a_setting_is_refused_and_not_shown(settings: list[str]) -> None:
    message = refused([*PRETRAIN, *settings])
    assert "holds a credential" in message
    assert "hunter2" not in message
    assert "AKIA" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("MLFLOW_TRACKING_PASSWORD", "x"),
        ("HF_TOKEN", "x"),
        ("DB", "pg://u:hunter2@h/d"),
    ],
)
def test_a_credential_among_the_variables_is_refused(name: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"env\.{name}.*secrets=\[{name}\]") as caught:
        SubmitOptions(env={name: value})
    assert "hunter2" not in str(caught.value)


def test_secrets_are_names() -> None:
    with pytest.raises(UserError, match="names only") as caught:
        SubmitOptions(secrets=("AWS_SECRET_ACCESS_KEY=hunter2",))
    assert "hunter2" not in str(caught.value)


def test_nothing_is_installed_unless_asked_for() -> None:
    plain = runtime_environment(SubmitOptions(), None)
    assert set(plain) == {"env_vars"}
    asked = runtime_environment(SubmitOptions(pip=("einops",), env={"A": "1"}), None)
    assert asked["pip"] == ["einops"]
    assert asked["env_vars"]["A"] == "1"


def test_places_are_read_from_nested_options() -> None:
    options = verb_options("evaluate", ["shards=/a", "model=m", "storage=/r", "embed.cache=/c"])
    assert value_of(options, "embed.cache") == "/c"
