"""What the tests share: eight CPU devices, and a model small enough to check by hand."""

import os

import jax
import pytest

# Before the first use of a device. XLA runs each device's part of a program on a thread of a pool of as many as cores,
# and a part that waits for another at a collective keeps its thread: two programs in flight can hold all of them.
os.environ.setdefault("NPROC", "16")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_cpu_enable_async_dispatch", False)
# Programs here are tiny and run seldom: what LLVM would gain in them it takes many times to find.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

from rerankjax.model.config import ModelConfig  # noqa: E402


@pytest.fixture
def tiny() -> ModelConfig:
    return ModelConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
