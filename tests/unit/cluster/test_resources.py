"""What a verb needs, and clusters on which it could only wait for ever."""

from __future__ import annotations

import pytest

from pipeline.cluster.resources import Demand, Node, check_capacity, demand_of
from pipeline.cluster.submit_verbs import verb_options
from pipeline.errors import UserError

EIGHT_GPUS = Node(64, 8)
CPU_ONLY = Node(16, 0)


def pretrain(*settings: str) -> Demand:
    return demand_of("pretrain", verb_options("pretrain", ["shards=/a", "storage=/b", *settings]))


def test_demands_follow_the_verbs_settings() -> None:
    assert pretrain("scale=node") == Demand(8, 8, 8.0, 1.0, "STRICT_PACK")
    assert pretrain("scale=elastic") == Demand(32, 8, 8.0, 1.0, "PACK")
    assert pretrain("scale=in_process").driver_cpus == 1
    finetune = verb_options("finetune", ["shards=/a", "storage=/b", "init=null", "trainer.device=cuda"])
    assert demand_of("finetune", finetune).driver_gpus == 1
    assert demand_of("finetune", finetune, driver_gpus=0).driver_gpus == 0
    shared = verb_options("finetune", ["shards=/a", "storage=/b", "init=null", "scale=node", "trainer.device=cuda"])
    assert demand_of("finetune", shared) == Demand(8, 8, 8.0, 1.0, "STRICT_PACK")
    preprocess = verb_options("preprocess", ["source=/a", "shards=/b", "scale.workers=40"])
    assert demand_of("preprocess", preprocess) == Demand(40, 1, 1.0, 0.0, "SPREAD")
    embed = ["shards=/a", "storage=/b", "model=m", "embed.engine=ray", "embed.workers=4", "embed.gpus_per_worker=1"]
    assert demand_of("evaluate", verb_options("evaluate", embed)).gpus == 1


def test_what_fits_passes() -> None:
    check_capacity(pretrain("scale=node"), [EIGHT_GPUS])
    check_capacity(pretrain("scale=elastic"), [EIGHT_GPUS])
    check_capacity(pretrain("scale=multi_node"), [CPU_ONLY], max_cpus=256, max_gpus=32)
    check_capacity(pretrain(), [Node(0, 0), Node(1, 0)])


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        (["scale=node"], [CPU_ONLY] * 8, r"needs 8 GPUs \(8 workers x 1\), but the cluster can never have more than 0"),
        (["scale=multi_node"], [EIGHT_GPUS], "needs 256 CPUs"),
        (["scale=node"], [Node(32, 4), Node(32, 4)], "STRICT_PACK"),
        (["scale.workers=2", "scale.cpus_per_worker=12"], [CPU_ONLY, Node(8, 0)], "do not fit the cluster's nodes"),
        (["scale.workers=2", "scale.placement=STRICT_SPREAD"], [CPU_ONLY], "STRICT_SPREAD"),
        (["scale=in_process"], [Node(0.5, 0), Node(0.5, 0)], "the verb's own process"),
    ],
)
def test_what_would_wait_for_ever_is_refused(settings: list[str], nodes: list[Node], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_capacity(pretrain(*settings), nodes)


def test_an_autoscaler_has_a_limit_too() -> None:
    with pytest.raises(UserError, match=r"never have more than 16; .*correct cluster.max_gpus"):
        check_capacity(pretrain("scale=multi_node"), [CPU_ONLY], max_cpus=1000, max_gpus=16)
