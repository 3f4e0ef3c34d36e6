"""Supervised fine-tuning: cross entropy on the completion (stage A of the paper)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import Rows, completion_log_probs, masked_mean
from rerankjax.model.lora import FULL, LoraConfig, attach
from rerankjax.model.sharding import by_row, on_mesh
from rerankjax.model.training import OptimizerConfig, TrainState, apply_gradients, gradients_of, make_optimizer


def sft_loss(
    config: ModelConfig, params: Params, rows: Rows, prompt_length: int, count: Int[Array, ""] | None = None
) -> Float[Array, ""]:
    """Mean negative log-likelihood of the completions' tokens (nats a token); `count` as in `masked_mean`."""
    log_probs, _ = completion_log_probs(config, params, rows, prompt_length)
    return -masked_mean(log_probs, rows.mask[:, prompt_length:], count=count)


@functools.cache
def make_sft_step(
    config: ModelConfig, optimizer_config: OptimizerConfig, prompt_length: int, mesh: Mesh, lora: LoraConfig = FULL
) -> Callable[[TrainState, Params | None, Rows], tuple[TrainState, dict[str, Array]]]:
    """The jitted update: (state, frozen base, rows) -> (state, metrics). The state, an adapter's, is donated.

    Without adapters the base is None and the state that of the whole model. Both are split as they come, the state as
    `start_state` does.
    """
    optimizer = make_optimizer(optimizer_config)

    def step(state: TrainState, base: Params | None, rows: Rows) -> tuple[TrainState, dict[str, Array]]:
        count = jnp.sum(rows.mask[:, prompt_length:])

        def loss_of(params: Params, rows: Rows) -> tuple[Float[Array, ""], dict[str, Array]]:
            return sft_loss(config, attach(base, params, lora), rows, prompt_length, count), {}

        metrics, gradients = gradients_of(loss_of, state.params, rows, optimizer_config.microbatches)
        return apply_gradients(state, gradients, optimizer, mesh), {name: jnp.sum(m) for name, m in metrics.items()}

    return jax.jit(on_mesh(mesh, step), in_shardings=(None, None, by_row(mesh)), donate_argnums=0)
