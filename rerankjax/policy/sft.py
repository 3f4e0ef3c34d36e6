"""Supervised fine-tuning: cross entropy on the completion (stage A of the paper)."""

import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import Rows, completion_log_probs, masked_mean
from rerankjax.model.lora import FULL, LoraConfig, attach
from rerankjax.model.sharding import by_row, replicated
from rerankjax.model.training import OptimizerConfig, TrainState, apply_gradients, make_optimizer


def sft_loss(config: ModelConfig, params: Params, rows: Rows, prompt_length: int) -> Float[Array, ""]:
    """Mean negative log-likelihood of the completions' tokens (nats a token)."""
    log_probs, _ = completion_log_probs(config, params, rows, prompt_length)
    return -masked_mean(log_probs, rows.mask[:, prompt_length:])


@functools.cache
def make_sft_step(
    config: ModelConfig, optimizer_config: OptimizerConfig, prompt_length: int, mesh: Mesh, lora: LoraConfig = FULL
) -> Callable[[TrainState, Params | None, Rows], tuple[TrainState, dict[str, Array]]]:
    """The jitted update: (state, frozen base, rows) -> (state, metrics). The state, an adapter's, is donated.

    Without adapters the base is None and the state that of the whole model.
    """
    optimizer = make_optimizer(optimizer_config)

    def step(state: TrainState, base: Params | None, rows: Rows) -> tuple[TrainState, dict[str, Array]]:
        def loss_of(params: Params) -> Float[Array, ""]:
            return sft_loss(config, attach(base, params, lora), rows, prompt_length)

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return apply_gradients(state, gradients, optimizer), {"loss": loss}

    everywhere, rows = replicated(mesh), by_row(mesh)
    return jax.jit(step, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere, donate_argnums=0)
