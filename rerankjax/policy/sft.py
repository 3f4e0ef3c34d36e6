"""Supervised fine-tuning: cross entropy on the completion (stage A of the paper)."""

import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import Rows, completion_log_probs, masked_mean
from rerankjax.model.sharding import by_row, replicated
from rerankjax.model.training import OptimizerConfig, TrainState, apply_gradients, make_optimizer


def sft_loss(config: ModelConfig, params: Params, rows: Rows, prompt_length: int) -> Float[Array, ""]:
    """Mean negative log-likelihood of the completions' tokens (nats a token)."""
    log_probs, _ = completion_log_probs(config, params, rows, prompt_length)
    return -masked_mean(log_probs, rows.mask[:, prompt_length:])


@functools.cache
def make_sft_step(
    config: ModelConfig, optimizer_config: OptimizerConfig, prompt_length: int, mesh: Mesh
) -> Callable[[TrainState, Rows], tuple[TrainState, dict[str, Array]]]:
    """The jitted update: (state, rows) -> (state, metrics). The state is donated."""
    optimizer = make_optimizer(optimizer_config)

    def step(state: TrainState, rows: Rows) -> tuple[TrainState, dict[str, Array]]:
        loss, gradients = jax.value_and_grad(lambda p: sft_loss(config, p, rows, prompt_length))(state.params)
        return apply_gradients(state, gradients, optimizer), {"loss": loss}

    everywhere = replicated(mesh)
    return jax.jit(step, in_shardings=(everywhere, by_row(mesh)), out_shardings=everywhere, donate_argnums=0)
