"""Supervised fine-tuning: cross entropy on the completion (stage A of the paper)."""

import functools

from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import masked_mean, packed_log_probs
from rerankjax.model.lora import FULL, LoraConfig, attach
from rerankjax.model.packing import Packed
from rerankjax.model.training import Counts, OptimizerConfig, Update


def sft_loss(
    config: ModelConfig, params: Params, packed: Packed, count: Int[Array, ""] | None = None
) -> Float[Array, ""]:
    """Mean negative log-likelihood of the completions' tokens (nats per token); `count` as in `masked_mean`."""
    log_probs, _ = packed_log_probs(config, params, packed)
    return -masked_mean(log_probs, packed.mask, count=count)


@functools.cache
def make_sft_step(
    config: ModelConfig, optimizer_config: OptimizerConfig, mesh: Mesh, lora: LoraConfig = FULL
) -> Update:
    """The update (see `model.training.Update`) of a decoder, or of an adapter over a frozen base."""

    def loss_of(
        params: Params, base: Params | None, part: Packed, counts: Counts
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        return sft_loss(config, attach(base, params, lora), part, counts.tokens), {}

    return Update(loss_of, optimizer_config, mesh)
