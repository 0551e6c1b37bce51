"""What a search says while it runs."""

import logging
from types import SimpleNamespace

from pipeline.tune.candidates import Candidate
from pipeline.tune.progress import Progress


class Trial(SimpleNamespace):
    """What Ray Tune hands to callbacks, as far as they look."""

    def __str__(self) -> str:
        return Candidate.from_dict(self.config["candidate"]).name

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"


def trial(index: int) -> Trial:
    candidate = Candidate(index, {}, {}).to_dict()
    return Trial(config={"candidate": candidate}, last_result={}, status="RUNNING")


def test_a_trial_that_is_stopped_at_its_last_step_is_done(caplog):
    caplog.set_level(logging.INFO)
    progress, trials = Progress(2, "loss", "min", 100), [trial(0), trial(1)]
    progress.setup()
    for who, step in zip(trials, (100, 40), strict=True):
        who.last_result = {"step": step, "loss": 0.5, "status": "training"}
        progress.on_trial_complete(step, trials, who)
    assert "trial_000 is done at step 100/100" in caplog.messages[0]
    assert "trial_001 is stopped early at step 40/100" in caplog.messages[1]


def test_the_best_so_far_is_chosen_as_the_report_chooses_it(caplog):
    caplog.set_level(logging.INFO)
    progress = Progress(2, "loss", "min", 100)
    progress.setup()
    lucky, steady = trials = [trial(0), trial(1)]

    def report(who: Trial, step: int, loss: float, ends: bool = False) -> str:
        who.last_result = {"step": step, "loss": loss, "done": ends, "status": "finished" if ends else "training"}
        progress.on_trial_result(step, trials, who, who.last_result)
        if ends:
            progress.on_trial_complete(step, trials, who)
            who.status = "TERMINATED"
        return caplog.messages[-1]

    assert "best trial_000 0.4" in report(lucky, 50, 0.4)  # nobody is done: what there is
    assert "best trial_000 0.9" in report(lucky, 100, 0.9, ends=True)  # its last value, not its luckiest
    assert "best trial_000 0.9" in report(steady, 50, 0.5)  # half a training is not compared with a whole one
    assert "2/2 done, best trial_001 0.7" in report(steady, 100, 0.7, ends=True)
