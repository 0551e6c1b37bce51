"""How a job's end becomes the end of ``hip submit``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.submit_follow import conclude, same_command
from pipeline.errors import DataError, HipError, InfrastructureError, Interrupted, TrainingDiverged, UserError


def job(status: str, exit_code: int | None = None, message: str = "") -> Any:
    return SimpleNamespace(
        submission_id="hip-a-1", status=SimpleNamespace(value=status), driver_exit_code=exit_code, message=message
    )


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (job("FAILED", 2), UserError),
        (job("FAILED", 3), DataError),
        (job("FAILED", 4), TrainingDiverged),
        (job("FAILED", 5), InfrastructureError),
        (job("FAILED", 130), Interrupted),
        (job("FAILED", None, "the node was lost"), InfrastructureError),
        (job("STOPPED", 143), Interrupted),
        (job("RUNNING"), InfrastructureError),
    ],
)
def test_submit_ends_as_the_verb_ended(ended: Any, kind: type[HipError]) -> None:
    with pytest.raises(kind, match="hip-a-1") as caught:
        conclude(ended, "hip submit job=pretrain")
    assert type(caught.value) is kind
    assert ("hip submit job=pretrain" in str(caught.value)) == (ended.status.value != "RUNNING")


def test_success_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    conclude(job("SUCCEEDED", 0), "")
    assert capsys.readouterr().out == "hip-a-1 succeeded\n"


def test_a_failures_reason_holds_no_credential() -> None:
    with pytest.raises(InfrastructureError) as caught:
        conclude(job("FAILED", 1, "cannot open s3://me:hunter2@bucket/x"), "again")
    assert "hunter2" not in str(caught.value)


def test_the_command_can_be_typed_again() -> None:
    assert same_command(["job=pretrain", "secrets=[A, B]"]) == "hip submit job=pretrain 'secrets=[A, B]'"
