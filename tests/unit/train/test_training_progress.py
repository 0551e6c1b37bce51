"""What a person sees while a run trains."""

import io
import logging
import sys

import pytest

from pipeline.train.progress import Progress, duration, line

VALUES = {
    "loss": 0.51239,
    "psnr_db/video": 21.04,
    "learning_rate": 3e-4,
    "gradient_norm": 1.5,
    "examples_per_second": 12.34,
    "data_wait_share": 0.004,
    "memory_gib": 1.26,
    "seconds_to_finish": 150.0,
}


@pytest.mark.parametrize(("seconds", "shown"), [(7.4, "7 s"), (150, "2 min"), (9000, "2.5 h")])
def test_durations_come_in_the_unit_that_a_person_would_use(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_an_interval_is_one_line_with_bad_steps_only_when_there_are_some() -> None:
    assert line(20, 100, VALUES) == (
        "step 20/100 | loss 0.5124 | video 21.0 dB | lr 3.00e-04 | grad 1.5 | 12.3 examples/s | wait 0.4 % | 1.3 GiB"
        " | 2 min left"
    )
    assert line(20, 100, VALUES | {"skipped_steps": 2, "loss_spikes": 1}).endswith("| 3 bad steps")


def test_a_log_gets_one_line_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    with Progress(on_terminal=False) as progress:
        progress.show(20, 100, VALUES)
        progress.show(40, 100, VALUES)
    assert [record.getMessage()[:11] for record in caplog.records] == ["step 20/100", "step 40/100"]


def test_a_terminal_gets_a_bar_that_log_lines_do_not_spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    ours = logging.getLogger("pipeline")
    monkeypatch.setattr(ours, "handlers", [logging.StreamHandler(terminal)])  # as the verbs set it up
    with Progress(on_terminal=True) as progress:
        progress.show(50, 100, VALUES)
        logging.getLogger("pipeline.train").warning("something happened")
        progress.show(100, 100, VALUES)
    _, bar, message, _ = terminal.getvalue().split("\r\x1b[K")
    assert bar.startswith("█" * 10 + "░" * 10 + " step 50/100 | loss 0.5124")
    assert message == "something happened\n"
    assert terminal.getvalue().endswith("left\n")
