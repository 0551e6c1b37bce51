"""What may be logged of a location."""

from __future__ import annotations

import pytest

from pipeline.storage import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/tokens", "s3://bucket/tokens"),
        ("postgresql://mlflow:pa@ss@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("s3://bucket/a?access_key=K&secret_key=S&region=eu", "s3://bucket/a?&&region=eu"),
        (
            "https://host/a?X-Amz-Credential=K%2Feu&X-Amz-Signature=0f&X-Amz-Expires=9",
            "https://host/a?&&X-Amz-Expires=9",
        ),
        ("GET https://host/a?x-amz-security-token=T failed", "GET https://host/a? failed"),
        ("s3://bucket/cat@home.mp4", "s3://bucket/cat@home.mp4"),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
