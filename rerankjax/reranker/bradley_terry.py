"""The reranker: a decoder with a reward head, trained on pairs (stage B of the paper).

r(x, y) is the score of completion y for prompt x, and P(y+ beats y-) = sigmoid(r(x, y+) - r(x, y-)) (Bradley and
Terry, 1952). Parameters: {"decoder": the trunk, "score": [D], the head}.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, hidden_states
from rerankjax.model.likelihood import Rows, Tree, masked_mean, token_log_probs, tree_hidden_states
from rerankjax.model.lora import FULL, LoraConfig, attach_trunk
from rerankjax.model.sharding import by_row, on_mesh
from rerankjax.model.training import OptimizerConfig, TrainState, apply_gradients, gradients_of, make_optimizer

POOLINGS = ("last", "mean")


@dataclasses.dataclass(frozen=True)
class RerankerConfig:
    """`pooling` "last" scores the last real token, as the paper; "mean" the mean over the completion's tokens.

    `lm_coef` weighs the negative log-likelihood of the better completion, added to the Bradley-Terry loss.
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
    per_token = hidden.astype(jnp.float32) @ head
    if pooling == "mean":
        return masked_mean(per_token[:, prompt_length:], mask[:, prompt_length:], axis=1)
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(per_token, last[:, None], axis=1)[:, 0]


def score_rows(config: ModelConfig, pooling: str, params: Params, rows: Rows, prompt_length: int) -> Float[Array, " B"]:
    """r(x, y) of each row."""
    hidden = hidden_states(config, params["decoder"], rows.tokens, rows.mask)
    return pool_scores(pooling, params["score"], hidden, rows.mask, prompt_length)


def bradley_terry(better: Float[Array, " B"], worse: Float[Array, " B"]) -> Float[Array, " B"]:
    """-log sigmoid(better - worse), without overflow."""
    return jax.nn.softplus(worse - better)


def reranker_loss(
    config: ModelConfig,
    reranker: RerankerConfig,
    params: Params,
    pairs: Tree,
    count: int | None = None,
    tokens: Int[Array, ""] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Bradley-Terry loss, mean over pairs, plus the auxiliary language-model loss on the better completions.

    Each prompt of `pairs` has two completions, the better one first. With the number of pairs in a whole batch, and of
    tokens in its better completions, these are a part's shares of the batch's loss and metrics.
    """
    hidden, before = tree_hidden_states(config, params["decoder"], pairs)
    scores = pool_scores(reranker.pooling, params["score"], hidden, pairs.mask, 0)
    chosen, rejected = scores[::2], scores[1::2]
    count = len(chosen) if count is None else count
    pair_loss = jnp.sum(bradley_terry(chosen, rejected)) / count
    metrics = {"pair_loss": pair_loss, "accuracy": jnp.sum(chosen > rejected) / count}
    if not reranker.lm_coef:
        return pair_loss, metrics
    log_probs = token_log_probs(config, params["decoder"], before[::2], pairs.completions[::2])
    lm_loss = -masked_mean(log_probs, pairs.mask[::2], count=tokens)
    return pair_loss + reranker.lm_coef * lm_loss, metrics | {"lm_loss": lm_loss}


@functools.cache
def make_reranker_step(
    config: ModelConfig,
    reranker: RerankerConfig,
    optimizer_config: OptimizerConfig,
    mesh: Mesh,
    lora: LoraConfig = FULL,
) -> Callable[[TrainState, Params | None, Tree], tuple[TrainState, dict[str, Array]]]:
    """The jitted update: (state, frozen base, pairs) -> (state, metrics), pairs as `reranker_loss`.

    The state is donated: of {"decoder": an adapter, "score"}, or of the whole reranker where the base is None.
    """
    optimizer = make_optimizer(optimizer_config)

    def step(state: TrainState, base: Params | None, pairs: Tree) -> tuple[TrainState, dict[str, Array]]:
        count, tokens = len(pairs.prompts), jnp.sum(pairs.mask[::2])

        def loss_of(params: Params, pairs: Tree) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
            return reranker_loss(config, reranker, attach_trunk(base, params, lora), flatten(pairs), count, tokens)

        # Pairs side by side, so that a microbatch has both completions of its prompts.
        by_prompt = jax.tree.map(lambda a: a.reshape(count, -1, a.shape[-1]), pairs)
        metrics, gradients = gradients_of(loss_of, state.params, by_prompt, optimizer_config.microbatches)
        return apply_gradients(state, gradients, optimizer, mesh), {name: jnp.sum(m) for name, m in metrics.items()}

    def flatten(by_prompt: Tree) -> Tree:
        return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), by_prompt)

    return jax.jit(on_mesh(mesh, step), in_shardings=(None, None, by_row(mesh)), donate_argnums=0)
