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
        ("http://host:8080/cat@home.mp4", "http://host:8080/cat@home.mp4"),
        ("s3://key:se/cr+et@bucket/a", "s3://bucket/a"),
        ("s3://b/a?AWS_SECRET_ACCESS_KEY=S&aws_access_key_id=K&x=1", "s3://b/a?&&x=1"),
        ("https://host/a?X-Goog-Signature=abc&password=p", "https://host/a?&"),
        ("https://host/a?sv=1&sig=abc&design=2", "https://host/a?sv=1&&design=2"),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
