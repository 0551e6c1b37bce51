"""The Ray Jobs API of one cluster, with failures told in the user's words."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pipeline.cluster.resources import Node
from pipeline.errors import InfrastructureError, UserError
from pipeline.storage import redact

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_CONNECT_SECONDS = 10.0


def dashboard_url(address: str | None) -> str:
    """``address`` as ``http://host:port``; none: from RAY_API_SERVER_ADDRESS.

    Raises:
        UserError: no address, one of another kind, or one that holds a credential.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise UserError(
            "address is required: the dashboard of the cluster's head, address=http://<head>:8265 (for a head behind "
            "ssh: ssh -L 8265:localhost:8265 <head>, then address=http://localhost:8265)"
        )
    if "://" not in address:
        address = f"http://{address}"
    parts = urlsplit(address)
    if redact(address) != address:
        raise UserError(
            "address holds a credential; leave it out, and set RAY_AUTH_TOKEN for a cluster that asks for one"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"address={address}: jobs go to the head's dashboard, address=http://{parts.hostname or '<head>'}:8265"
        )
    if parts.port == 6379:
        raise UserError(
            f"address={address}: port 6379 is Ray's own; jobs go to the dashboard, address=http://{parts.hostname}:8265"
        )
    return address.rstrip("/")


class JobsClient:
    """Jobs of the cluster at ``address``.

    Raises:
        UserError: the address is of the wrong kind, or the cluster wants another token.
        InfrastructureError: nothing answers there.
    """

    def __init__(self, address: str | None) -> None:
        self.address = dashboard_url(address)
        self._knock()
        from ray.job_submission import JobSubmissionClient

        with self._explained(), _variables_aside():
            self._client = JobSubmissionClient(self.address)
            self.ray_version = str(self._get("/api/version")["ray_version"])

    def nodes(self, wait_seconds: float) -> list[Node]:
        """The nodes that are alive; waits a little for a cluster that is just starting."""
        deadline = time.monotonic() + wait_seconds
        while True:
            with self._explained():
                listed = self._get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
            alive = [entry["resources_total"] for entry in listed if entry["state"] == "ALIVE"]
            if alive:
                return [Node(float(there.get("CPU", 0)), float(there.get("GPU", 0))) for there in alive]
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"the cluster at {self.address} has no living node; look at `ray status` there"
                )
            time.sleep(0.5)

    def jobs(self) -> dict[str, Any]:
        """Every submitted job by its submission id."""
        with self._explained():
            return {job.submission_id: job for job in self._client.list_jobs() if job.submission_id}

    def submit(self, submission_id: str, entrypoint: str, **options: Any) -> None:
        """Send a job.

        Raises:
            UserError: a job of this id was sent a moment ago.
        """
        with self._explained():
            try:
                self._client.submit_job(submission_id=submission_id, entrypoint=entrypoint, **options)
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                raise UserError(
                    f"{submission_id} was submitted a moment ago; follow it: hip submit logs id={submission_id} "
                    f"address={self.address}"
                ) from error

    def info(self, submission_id: str) -> Any:
        """Ray's record of one job."""
        with self._explained():
            return self._client.get_job_info(submission_id)

    def wait(self, submission_id: str, seconds: float) -> Any:
        """The record of a job that ends within ``seconds``; after that, its record all the same."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.info(submission_id)
            if found.status.value in ENDED or time.monotonic() > deadline:
                return found
            time.sleep(0.3)

    def logs(self, submission_id: str) -> str:
        """All that a job has written."""
        with self._explained():
            return str(self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str) -> None:
        """Print what the job writes, from its beginning to its end."""

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(submission_id):
                print(redact(lines), end="", flush=True)

        with self._explained():
            asyncio.run(tail())

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end; false when it had ended already."""
        with self._explained():
            return bool(self._client.stop_job(submission_id))

    def delete(self, submission_id: str) -> None:
        """Forget a job that has ended."""
        with self._explained():
            self._client.delete_job(submission_id)

    def _get(self, endpoint: str) -> Any:
        """One GET with the token and certificates that the Jobs API uses."""
        response = self._client._do_request("GET", endpoint, timeout=30)
        response.raise_for_status()
        return response.json()

    def _knock(self) -> None:
        """Find out within seconds, not after Ray's minutes, that nothing listens there."""
        parts = urlsplit(self.address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            raise InfrastructureError(
                f"no Ray dashboard answers at {self.address} ({error.strerror or error}); check host and port (8265 "
                "unless told otherwise), a tunnel (ssh -L 8265:localhost:8265 <head>), and `ray status` on the head"
            ) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Ray's and the network's errors as ours."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                f"the cluster at {self.address} did not accept this machine's token: export RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) with the cluster's own"
            ) from error
        except (requests.RequestException, aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise InfrastructureError(
                f"lost the Ray dashboard at {self.address}: {type(error).__name__}; jobs that run there go on"
            ) from error
        except RuntimeError as error:
            message = " ".join(str(error).split())[:400]
            raise InfrastructureError(f"the Ray dashboard at {self.address} answered: {redact(message)}") from error


@contextmanager
def _variables_aside() -> Iterator[None]:
    """Ray prefers its own variables to an address that is given; here the given one counts."""
    kept = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
