"""A member of a population goes on under changed settings; any other trial's record is left as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.train.options import OptimOptions, PretrainOptions, ScaleOptions
from pipeline.train.resume import FINISHED, RunRecord, config_hash, options_to_dict
from pipeline.tune.population import continue_under


def finished_run(folder: Path, options: PretrainOptions) -> bytes:
    values = options_to_dict(options)
    RunRecord("trial_000", FINISHED, values, config_hash(values), "sha256:0", "code").write(str(folder))
    return (folder / "run.json").read_bytes()


def test_a_finished_trial_that_starts_again_is_not_touched(tmp_path: Path) -> None:
    options = PretrainOptions(shards="shards", scale=ScaleOptions(workers=0))
    before = finished_run(tmp_path, options)
    continue_under(str(tmp_path), replace(options, scale=ScaleOptions(workers=1)))
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_member_takes_the_settings_that_it_was_given(tmp_path: Path) -> None:
    options = PretrainOptions(shards="shards")
    finished_run(tmp_path, options)
    continue_under(str(tmp_path), replace(options, optim=OptimOptions(learning_rate=0.5)))
    record = RunRecord.read(str(tmp_path))
    assert record is not None
    assert record.options["optim"]["learning_rate"] == 0.5
