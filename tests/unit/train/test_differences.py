"""What counts as another run, and what a newer version of the program does not make one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.train.differences import default_values, differences, digest_of_chosen
from pipeline.train.options import AugmentOptions, PretrainOptions
from pipeline.train.resume import RUNNING, RunRecord, config_hash, differing, options_to_dict
from pipeline.tune.options import TuneOptions


@dataclass
class Inner:
    new: int = 4
    kinds: tuple[str, ...] = ("a", "b")


@dataclass
class Options:
    needed: str
    old: float = 0.5
    inner: Inner = field(default_factory=Inner)


def test_defaults_are_told_by_dotted_name() -> None:
    assert default_values(Options) == {"old": 0.5, "inner.new": 4, "inner.kinds": ["a", "b"]}


def test_an_option_that_is_new_counts_as_its_default() -> None:
    then = {"needed": "x", "old": 0.5}
    assert differences(then, {"needed": "x", "old": 0.5, "inner.new": 4}, Options) == []
    assert differences(then, {"needed": "x", "old": 0.5, "inner.new": 5}, Options) == ["inner.new: 4 then, 5 now"]


def test_what_changed_or_has_no_default_or_is_gone_is_a_difference() -> None:
    lines = differences({"gone": 1, "old": 0.5}, {"needed": "x", "old": 0.25}, Options)
    assert lines == ["gone: 1 then, (absent) now", "needed: (absent) then, x now", "old: 0.5 then, 0.25 now"]
    assert differences({"needed": None}, {}, Options) == ["needed: None then, (absent) now"]


@pytest.mark.parametrize("options", [PretrainOptions, FinetuneOptions, TuneOptions])
def test_every_kind_of_run_has_defaults(options: type) -> None:
    assert len(default_values(options)) > 20


def test_a_run_of_an_earlier_version_is_continued() -> None:
    now = RunRecord("first", RUNNING, options_to_dict(PretrainOptions(shards="data")), "", "", "")
    options = options_to_dict(PretrainOptions(shards="data"))
    del options["optim"]["ema_decay"]
    del options["ingest"]["window_blocks"]
    assert differing(RunRecord("first", RUNNING, options, "", "", ""), now) == []
    now.options["ingest"]["window_blocks"] = 8
    (line,) = differing(RunRecord("first", RUNNING, options, "", "", ""), now)
    assert line == "ingest.window_blocks: 64 then, 8 now"


def test_an_option_that_is_new_does_not_rename_the_runs_that_leave_it_alone() -> None:
    """A run without a name is found again by the hash of its options."""
    now = options_to_dict(PretrainOptions("shards", seed=3))
    before = {key: value for key, value in now.items() if key != "augment"}
    assert config_hash(before) == config_hash(now)
    flipped = options_to_dict(PretrainOptions("shards", seed=3, augment=AugmentOptions(flip=0.5)))
    assert len({config_hash(values) for values in (now, flipped, {**now, "seed": 4})}) == 3


def test_an_option_that_is_left_alone_changes_no_digest() -> None:
    before = {"seed": 3, "mask.ratio": 0.5}
    with_later_ones = {**before, "resize_positions": False, "mask.policy": "group_uniform"}
    assert digest_of_chosen(with_later_ones, PretrainOptions) == digest_of_chosen(before, PretrainOptions)
    assert digest_of_chosen({**before, "seed": 4}, PretrainOptions) != digest_of_chosen(before, PretrainOptions)
    assert digest_of_chosen({**before, "resize_positions": True}, PretrainOptions) != digest_of_chosen(
        before, PretrainOptions
    )
