"""The reranker: a decoder with a reward head, trained on pairs (stage B of the paper).

r(x, y) is the score of completion y for prompt x, and P(y+ beats y-) = sigmoid(r(x, y+) - r(x, y-)) (Bradley and
Terry, 1952). Parameters: {"decoder": the trunk, "score": [D], the head}.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, hidden_states, packed_hidden_states
from rerankjax.model.likelihood import SequenceBatch, masked_mean, take_places, token_log_probs, tokens_of_completions
from rerankjax.model.lora import FULL, LoraConfig, attach_trunk
from rerankjax.model.packing import Packed
from rerankjax.model.training import Counts, OptimizerConfig, Update
from rerankjax.reranker.pair_batches import PackedPairs

POOLINGS = ("last", "mean")


@dataclasses.dataclass(frozen=True)
class RerankerConfig:
    """`pooling` "last" scores the last real token, as the paper; "mean" the mean over the completion's tokens.

    `lm_coef` weighs the negative log-likelihood of the chosen completion, which is added to the Bradley-Terry loss.
    """

    pooling: str
    lm_coef: float

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f'pooling = "{self.pooling}" is unknown: use one of {", ".join(POOLINGS)}')
        if self.lm_coef < 0:
            raise ValueError(f"lm_coef = {self.lm_coef} rewards unlikely text: use 0 or more")


def init_reranker(trunk: Params, key: Array) -> Params:
    """A reranker on `trunk`, its head drawn from normal(0, 1 / sqrt(D + 1)) (openai/lm-human-preferences)."""
    width = trunk["norm"]["scale"].shape[0]
    return {"decoder": trunk, "score": jax.random.normal(key, (width,)) * (width + 1) ** -0.5}


def pool_scores(
    pooling: str, head: Float[Array, " D"], hidden: Float[Array, "B L D"], mask: Bool[Array, "B L"], prompt_length: int
) -> Float[Array, " B"]:
    per_token = _by_token(head, hidden)
    if pooling == "mean":
        return masked_mean(per_token[:, prompt_length:], mask[:, prompt_length:], axis=1)
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(per_token, last[:, None], axis=1)[:, 0]


def _by_token(head: Float[Array, " D"], hidden: Float[Array, "B L D"]) -> Float[Array, "B L"]:
    return hidden.astype(jnp.float32) @ head.astype(jnp.float32)


def score_rows(
    config: ModelConfig, pooling: str, params: Params, rows: SequenceBatch, prompt_length: int
) -> Float[Array, " B"]:
    """r(x, y) of each row."""
    hidden = hidden_states(config, params["decoder"], rows.tokens, rows.mask)
    return pool_scores(pooling, params["score"], hidden, rows.mask, prompt_length)


def bradley_terry(chosen: Float[Array, "..."], rejected: Float[Array, "..."]) -> Float[Array, "..."]:
    """-log sigmoid(chosen - rejected), without overflow."""
    return jax.nn.softplus(rejected - chosen)


def packed_scores(config: ModelConfig, pooling: str, params: Params, packed: Packed) -> Float[Array, "B N"]:
    """r(x, y) of each completion; arbitrary numbers where there is no completion."""
    return pool_packed(pooling, params["score"], packed_hidden_states(config, params["decoder"], packed), packed)


def pool_packed(
    pooling: str, head: Float[Array, " D"], hidden: Float[Array, "B L D"], packed: Packed
) -> Float[Array, "B N"]:
    """`packed_scores` from the rows' hidden states."""
    per_token = _by_token(head, hidden)
    if pooling == "last":
        return jnp.take_along_axis(per_token, packed.last, axis=1)
    of_completions = jnp.take_along_axis(per_token, packed.target_place, axis=1)[..., None]
    return masked_mean(of_completions, tokens_of_completions(packed), axis=1)


def reranker_loss(
    config: ModelConfig,
    reranker: RerankerConfig,
    params: Params,
    pairs: PackedPairs,
    counts: Counts,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Bradley-Terry loss, mean over pairs, plus the auxiliary language-model loss on the chosen completions, each as
    often as it is chosen.

    The results are this part's shares of the loss and metrics of a batch with these `counts`.
    """
    packed, wins = pairs.packed, pairs.wins.astype(jnp.float32)
    hidden = packed_hidden_states(config, params["decoder"], packed)
    scores = pool_packed(reranker.pooling, params["score"], hidden, packed)
    chosen, rejected = scores[:, :, None], scores[:, None]
    of_batch = jnp.maximum(counts.sequences, 1).astype(jnp.float32)
    pair_loss = jnp.sum(wins * bradley_terry(chosen, rejected)) / of_batch
    metrics = {"pair_loss": pair_loss, "accuracy": jnp.sum(wins * (chosen > rejected).astype(jnp.float32)) / of_batch}
    if not reranker.lm_coef:
        return pair_loss, metrics
    tokens = jnp.take_along_axis(packed.tokens, packed.target_place, axis=1)
    log_probs = token_log_probs(config, params["decoder"], take_places(hidden, packed.before), tokens)
    times_chosen = jnp.take_along_axis(jnp.sum(wins, axis=2), packed.completion, axis=1)
    lm_loss = -masked_mean(log_probs * times_chosen, packed.mask, count=counts.tokens)
    return pair_loss + reranker.lm_coef * lm_loss, metrics | {"lm_loss": lm_loss}


@functools.cache
def make_reranker_step(
    config: ModelConfig,
    reranker: RerankerConfig,
    optimizer_config: OptimizerConfig,
    mesh: Mesh,
    lora: LoraConfig = FULL,
) -> Update:
    """The update (see `model.training.Update`) of {"decoder": an adapter, "score"} over a frozen base, or of the whole
    reranker where the base is None."""

    def loss_of(
        params: Params, base: Params | None, part: PackedPairs, counts: Counts
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        return reranker_loss(config, reranker, attach_trunk(base, params, lora), part, counts)

    return Update(loss_of, optimizer_config, mesh)
