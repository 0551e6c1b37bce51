"""Each verb across hosts with addresses of their own: a host dies or is cut off, and work goes on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from multi_node_driver import STEPS, pretrain_options
from node_network import Network, network
from test_preprocess_kill import digest, finish
from training_data import write_dataset
from two_ranks import run_on_two_ranks

from pipeline.demo.clips import make_demo_clips
from pipeline.train.checkpoint import latest_checkpoint, read_state
from pipeline.tune.results import FINISHED

pytestmark = pytest.mark.fault

DRIVER = str(Path(__file__).with_name("multi_node_driver.py"))
_LIMIT_SECONDS = 300.0


def wait_for(what: Callable[[], bool], driver: subprocess.Popen[bytes], net: Network) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not what():
        assert driver.poll() is None, net.log()
        assert time.monotonic() < deadline, net.log()
        time.sleep(0.1)


def end(driver: subprocess.Popen[bytes], net: Network) -> None:
    assert driver.wait(timeout=_LIMIT_SECONDS) == 0, net.log()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("nodes")
    write_dataset(place / "shards", train=24, validation=8)
    return place


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, float]:
    """The undisturbed curve."""
    return run_on_two_ranks(folder / "ranks", [pretrain_options(folder)])[0]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(os.getpid() % 200, tmp_path_factory.mktemp("net")) as made:
        yield made


def test_preprocessing_gives_the_same_bytes_when_a_host_dies(net: Network, tmp_path: Path) -> None:
    hosts = net.hosts_up(2)
    make_demo_clips(tmp_path / "source", 60, seed=1, size_pixels=128, num_images=0)
    driver = net.drive(DRIVER, "preprocess", str(tmp_path))
    wait_for(lambda: any((tmp_path / "tokens").rglob("train-*.arrow")), driver, net)
    net.kill(hosts[0])
    end(driver, net)
    finish(tmp_path / "source", tmp_path / "whole")
    assert digest(tmp_path / "tokens") == digest(tmp_path / "whole")


def newest_step(run_folder: Path) -> int:
    newest = latest_checkpoint(str(run_folder))
    return -1 if newest is None else read_state(newest).step


def losses(folder: Path) -> dict[int, float]:
    newest = latest_checkpoint(str(folder / "runs" / "nodes"))
    assert newest is not None
    state = read_state(newest)
    assert state.step == STEPS
    return dict(enumerate(state.hooks["guards"]["losses"], start=1))


def matches(found: dict[int, float], expected: dict[int, float]) -> bool:
    """Losses on fewer workers are sums in another order."""
    return found == pytest.approx(expected, rel=1e-5)


def test_training_goes_on_with_one_host_and_takes_a_new_one(
    net: Network, folder: Path, tmp_path: Path, expected: dict[int, float]
) -> None:
    hosts = net.hosts_up(2)
    (tmp_path / "shards").symlink_to(folder / "shards")
    driver = net.drive(DRIVER, "pretrain", str(tmp_path))
    wait_for(lambda: newest_step(tmp_path / "runs" / "nodes") >= 10, driver, net)
    net.kill(hosts[1])
    net.add(9)
    end(driver, net)
    assert matches(losses(tmp_path), expected)


@pytest.mark.parametrize("seconds", [30, 75])
def test_a_cut_network_ends_in_a_clean_restart(
    net: Network, folder: Path, tmp_path: Path, expected: dict[int, float], seconds: int
) -> None:
    hosts = net.hosts_up(2)
    (tmp_path / "shards").symlink_to(folder / "shards")
    driver = net.drive(DRIVER, "pretrain", str(tmp_path))
    wait_for(lambda: newest_step(tmp_path / "runs" / "nodes") >= 10, driver, net)
    net.cut(hosts[1], seconds)
    end(driver, net)
    assert matches(losses(tmp_path), expected)


def test_a_search_finishes_all_trials_when_a_host_dies(net: Network, folder: Path, tmp_path: Path) -> None:
    hosts = net.hosts_up(2)
    (tmp_path / "shards").symlink_to(folder / "shards")
    driver = net.drive(DRIVER, "tune", str(tmp_path))
    trials = tmp_path / "runs" / "killed" / "trials"
    wait_for(lambda: any(newest_step(trial) >= 4 for trial in trials.glob("*")), driver, net)
    net.kill(hosts[0])
    end(driver, net)
    assert json.loads((tmp_path / "trials.json").read_text()) == [[FINISHED, 60]] * 4
