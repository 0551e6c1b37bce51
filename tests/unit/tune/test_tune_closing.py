"""The end of a search waits for stopped trials to close, and for nothing else."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.train.resume import FINISHED, RUNNING, RunRecord
from pipeline.tune.closing import AwaitClosing


@dataclass
class Trial:
    name: str
    finished: bool = True

    def is_finished(self) -> bool:
        return self.finished


def write(folder: Path, name: str, status: str) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    RunRecord(name, status, {}, "hash", "sha256:0", "code").write(str(folder / name))


def seconds_of_a_step(waiting: AwaitClosing, trials: list[Trial]) -> float:
    began = time.monotonic()
    waiting.on_step_end(1, trials)
    return time.monotonic() - began


def test_it_waits_until_the_last_one_has_written_how_it_ended(tmp_path: Path) -> None:
    write(tmp_path, "good", FINISHED)
    write(tmp_path, "bad", RUNNING)
    waiting = AwaitClosing(str(tmp_path), lambda trial: trial.name, lambda: False, seconds=30)
    good, bad = Trial("good"), Trial("bad")
    for trial in (good, bad, Trial("never_began")):
        waiting.on_trial_complete(1, [good, bad], trial)
    closing = threading.Timer(0.5, write, (tmp_path, "bad", FINISHED))
    closing.start()
    assert 0.4 < seconds_of_a_step(waiting, [good, bad]) < 20
    assert seconds_of_a_step(waiting, [good, bad]) < 0.1, "once is enough"


def test_it_never_holds_up_a_trial_that_runs_and_gives_up_in_the_end(tmp_path: Path) -> None:
    write(tmp_path, "bad", RUNNING)
    waiting = AwaitClosing(str(tmp_path), lambda trial: trial.name, lambda: False, seconds=0.3)
    bad = Trial("bad")
    waiting.on_trial_complete(1, [bad], bad)
    assert seconds_of_a_step(waiting, [bad, Trial("other", finished=False)]) < 0.1
    assert 0.2 < seconds_of_a_step(waiting, [bad]) < 5
    assert seconds_of_a_step(waiting, [bad]) < 0.1, "it is not waited for again"


def test_it_never_holds_up_a_trial_that_is_still_to_start(tmp_path: Path) -> None:
    write(tmp_path, "bad", RUNNING)
    more = [True]
    waiting = AwaitClosing(str(tmp_path), lambda trial: trial.name, lambda: more[0], seconds=0.3)
    bad = Trial("bad")
    waiting.on_trial_complete(1, [bad], bad)
    assert seconds_of_a_step(waiting, [bad]) < 0.1
    more[0] = False
    assert 0.2 < seconds_of_a_step(waiting, [bad]) < 5, "it is still known as one to wait for"
