"""What DeepSpeed is told."""

from __future__ import annotations

from pipeline.train.engine_deepspeed import deepspeed_config
from pipeline.train.options import EngineOptions


def test_the_buffer_of_gradients_is_as_large_as_the_model_and_no_larger_than_the_default() -> None:
    def bucket(trained_parameters: int) -> int:
        options = EngineOptions(stage=1, precision="bf16")
        return int(deepspeed_config(options, 4, 2, 8, trained_parameters)["zero_optimization"]["reduce_bucket_size"])

    assert bucket(95_585_188) == 95_585_188
    assert bucket(2_000_000_000) == 500_000_000
