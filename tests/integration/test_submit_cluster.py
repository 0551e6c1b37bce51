"""``hip submit`` against a cluster that ``ray start`` made in other processes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ray_process import free_ports, ray_head
from training_data import write_dataset

from jobs.submit import main
from pipeline.cluster.submit_client import JobsClient
from pipeline.cluster.submit_preflight import CHECK
from pipeline.demo.clips import make_demo_clips
from pipeline.train.checkpoint import latest_checkpoint, read_state

pytestmark = pytest.mark.integration

SMALL = [
    "model=hip_nano", "engine=torch", "engine.precision=fp32", "scale=in_process", "batch.global_size=4",
    "validation.every_steps=0", "figures.every_steps=0", "tracking.enabled=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_head(num_cpus=3) as address:
        yield address


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this machine and the cluster both see, with media in it."""
    folder = tmp_path_factory.mktemp("shared")
    make_demo_clips(folder / "clips", 2, num_sounds=0, num_images=0)
    return folder


def sent_jobs(client: JobsClient) -> set[str]:
    return {name for name in client.jobs() if not name.startswith(CHECK)}


def pretrain(shared: Path, *settings: str) -> list[str]:
    return ["job=pretrain", f"shards={shared}/tokens", f"storage={shared}/runs", *SMALL, *settings]


@pytest.mark.fault
def test_verbs_run_there(address: str, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"address={address}"
    preprocess = ["job=preprocess", where, f"source={shared}/clips", f"shards={shared}/tokens", "tokens=demo"]
    assert main([*preprocess, "scale.workers=1", "validation_fraction=0"]) == 0
    told = capsys.readouterr().out
    assert "python -m jobs preprocess" in told
    assert f"page:  {address}/#/jobs/hip-preprocess-tokens-" in told
    assert "again: hip submit job=preprocess" in told
    assert "examples" in told  # from the job's own log

    command = [*pretrain(shared, "run.name=first", "duration.steps=3"), where]
    assert main(command) == 0
    assert saved_steps(shared / "runs" / "first") == 3
    assert "hip-pretrain-first-" in capsys.readouterr().out
    assert main(["status", where]) == 0
    assert capsys.readouterr().out.count("SUCCEEDED") == 2


@pytest.mark.fault
def test_a_running_job_is_not_sent_twice_and_the_same_command_goes_on_after_a_stop(
    address: str, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(shared / "tokens")
    command = [*pretrain(shared, "run.name=long", "duration.steps=1000000"), f"address={address}"]
    name = started(command, address, capsys)
    assert main(command) == 2
    assert f"running already as {name}" in capsys.readouterr().err
    assert main(["stop", f"id={name}", f"address={address}"]) == 0
    assert f"{name} is STOPPED" in capsys.readouterr().out
    run = shared / "runs" / "long"
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    first_steps = saved_steps(run)
    assert first_steps > 0
    assert main(["logs", f"id={name.rpartition('-')[0]}", f"address={address}", "follow=false"]) == 0
    assert "loss" in capsys.readouterr().out

    again = started(command, address, capsys)
    assert (name.rpartition("-")[0], "1", "2") == (again.rpartition("-")[0], name[-1], again[-1])
    assert main(["stop", f"id={again}", f"address={address}"]) == 0
    assert json.loads((run / "run.json").read_text())["attempts"] == 2
    assert saved_steps(run) > first_steps


def started(command: list[str], address: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Send the job and wait for its first line of progress; its id."""
    assert main([*command, "follow=false"]) == 0
    name = capsys.readouterr().out.split("sent as ")[1].split()[0]
    client = JobsClient(address)
    deadline = time.monotonic() + 120
    while "loss" not in client.logs(name) and time.monotonic() < deadline:
        time.sleep(0.5)
    return name


def saved_steps(run_folder: Path) -> int:
    checkpoint = latest_checkpoint(str(run_folder))
    assert checkpoint is not None
    return read_state(checkpoint).step


def test_a_failing_verb_ends_submit_with_its_own_exit_code(
    address: str, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["job=inspect", f"shards={shared}/nowhere", f"address={address}"]
    assert main(settings) == 2
    told = capsys.readouterr()
    assert "exit code 2" in told.err
    assert "hip submit job=inspect" in told.err
    assert "nowhere" in told.out


@pytest.mark.parametrize(
    ("settings", "exit_code", "message"),
    [
        (["scale.gpus_per_worker=1", "scale.workers=1"], 2, "needs 1 GPUs (1 workers x 1), but the cluster can never"),
        (["secrets=[HIP_TEST_NOT_SET]"], 2, "on the cluster HIP_TEST_NOT_SET is not set"),
        (["code.limit_mib=0.1"], 2, "above code.limit_mib=0.1"),
        (["storage=hip-runs"], 2, "storage=hip-runs is relative to this machine"),
        (["run.name=../up"], 2, "run.name"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_sent(
    address: str, shared: Path, settings: list[str], exit_code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = JobsClient(address)
    before = sent_jobs(client)
    command = pretrain(shared, "run.name=refused", "duration.steps=1", *settings, f"address={address}")
    assert main(command) == exit_code
    assert message in capsys.readouterr().err
    assert sent_jobs(client) == before


def test_an_address_where_nothing_listens_is_told(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    assert main([*pretrain(shared, "duration.steps=1"), f"address=http://127.0.0.1:{port}"]) == 5
    assert f"no Ray dashboard answers at http://127.0.0.1:{port}" in capsys.readouterr().err


class _OldRay(BaseHTTPRequestHandler):
    """Answers like the dashboard of another Ray."""

    def do_GET(self) -> None:
        content = json.dumps({"version": "4", "ray_version": "2.40.0", "ray_commit": "", "session_name": ""}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        raise AssertionError("nothing may be sent")

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def test_a_cluster_of_another_version_is_told(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = HTTPServer(("127.0.0.1", 0), _OldRay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        command = [*pretrain(shared, "duration.steps=1"), f"address=http://127.0.0.1:{server.server_port}"]
        assert main(command) == 2
    finally:
        server.shutdown()
        server.server_close()
    assert "runs Ray 2.40.0, but this code needs ray==2.60.0" in capsys.readouterr().err


def test_a_dry_run_sends_nothing(address: str, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = JobsClient(address)
    before = sent_jobs(client)
    assert main([*pretrain(shared, "run.name=dry", "duration.steps=1"), f"address={address}", "dry_run=true"]) == 0
    assert "would be sent as hip-pretrain-dry-" in capsys.readouterr().out
    assert sent_jobs(client) == before
