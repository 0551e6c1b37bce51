from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.tracking.flatten import clean_key, clean_params, clean_tags


@dataclass(frozen=True)
class _Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class _Outer:
    optim: _Inner = field(default_factory=_Inner)
    levels: tuple[int, ...] = (1, 2)


def test_dataclasses_and_mappings_become_dotted_names() -> None:
    assert clean_params({"run": _Outer(), "empty": {}}) == {
        "run.optim.rate": "0.1",
        "run.levels": "(1, 2)",
        "empty": "{}",
    }


def test_long_values_are_clipped_with_a_mark() -> None:
    text = clean_params({"text": "x" * 10_000})["text"]
    assert len(text) == 6000
    assert text.endswith("…")


def test_secrets_do_not_pass() -> None:
    cleaned = clean_tags({"storage": "s3://key:hunter2@bucket/x", "api_key": "hunter2", "db.password": "hunter2"})
    assert "hunter2" not in str(cleaned)
    assert cleaned["storage"] == "s3://bucket/x"


def test_words_that_merely_contain_a_secret_name_pass() -> None:
    assert clean_params({"num_tokens": 5, "tokens.video": 7}) == {"num_tokens": "5", "tokens.video": "7"}


def test_characters_that_mlflow_refuses_are_replaced() -> None:
    assert clean_key("psnr[video]%") == "psnr_video__"
