"""A cluster that cannot be joined: what may be wrong, with the way out."""

from __future__ import annotations

import pytest

from pipeline.errors import InfrastructureError
from pipeline.ray_session import RayOptions, ray_session


@pytest.mark.parametrize(("mode", "tells"), [(None, True), ("token", False)])
def test_a_token_that_may_be_missing_is_named(monkeypatch: pytest.MonkeyPatch, mode: str | None, tells: bool) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with (
        pytest.raises(InfrastructureError, match=r"could not join the Ray cluster at 10\.0\.0\.1:6379") as caught,
        ray_session(RayOptions(address="10.0.0.1:6379")),
    ):
        pass
    assert ("RAY_AUTH_MODE=token" in str(caught.value)) == tells
