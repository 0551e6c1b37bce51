"""What may be logged of a location, and the names in its path."""

from __future__ import annotations

import pytest

from pipeline.storage import join, name_of, parent_of, redact


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


@pytest.mark.parametrize(
    ("location", "parent", "name"),
    [
        ("/data/runs/first/", "/data/runs", "first"),
        ("/list.csv", "/", "list.csv"),
        ("list.csv", ".", "list.csv"),
        ("/data/what?.mp4", "/data", "what?.mp4"),
        ("s3://bucket/a/list.csv", "s3://bucket/a", "list.csv"),
        ("s3://bucket/a/b?endpoint_override=http://host:9000", "s3://bucket/a?endpoint_override=http://host:9000", "b"),
    ],
)
def test_a_location_has_a_parent_and_a_name_and_keeps_its_query(location: str, parent: str, name: str) -> None:
    assert (parent_of(location), name_of(location)) == (parent, name)
    if parent != ".":
        assert join(parent, name).rstrip("/") == location.rstrip("/")
