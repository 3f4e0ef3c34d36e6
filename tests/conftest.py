"""What the tests share: two CPU devices, and a model small enough to check by hand."""

import jax
import pytest

# Before the first use of a device. Programs with collectives must not be dispatched ahead on few cores: XLA's CPU
# collectives wait for threads that the programs behind them hold.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_enable_async_dispatch", False)

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
