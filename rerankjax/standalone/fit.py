"""The training loop of `train-reranker`: from pairs to the parameters with the highest accuracy on dev pairs."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rerankjax.model.attention import skips
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.lora import FULL
from rerankjax.model.packing import Item, PackConfig
from rerankjax.model.sharding import replicated, row_shards, to_global
from rerankjax.model.training import TrainState, Update, feed_batch, start_state
from rerankjax.progress import progress
from rerankjax.prompts.rows import shuffled_batches
from rerankjax.reranker.bradley_terry import make_reranker_step
from rerankjax.reranker.pair_batches import blocks_of, pair_batch
from rerankjax.run.metrics import metric_writer
from rerankjax.run.prefetch import Prefetch
from rerankjax.run.recovery import Recovery
from rerankjax.standalone.config import RerankerTrainingConfig


class Progress(NamedTuple):
    """What one step passes to the next: the state, the best parameters so far, their accuracy on dev pairs, and the
    number of measurements since without improvement (`stale`)."""

    state: TrainState
    best: Params
    accuracy: jax.Array
    stale: jax.Array


def pair_step(
    config: RerankerTrainingConfig, shape: ModelConfig, base: Params | None, pairs: Sequence[Item], mesh: Mesh
) -> tuple[Update, PackConfig]:
    """The update of a reranker, and the sizes of its microbatches."""
    update = make_reranker_step(shape, config.reranker, config.optimizer, mesh, FULL if base is None else config.lora)
    prompt = max(len(prompt) for prompt, _ in pairs)
    completion = max(len(text) for _, texts in pairs for text in texts)
    sizes = PackConfig.from_batch_size(
        config.batch_size,
        config.optimizer.microbatches,
        prompt,
        completion,
        2,
        row_shards(mesh),
        skips(shape.attention),
    )
    return update, sizes


def fit(
    config: RerankerTrainingConfig,
    shape: ModelConfig,
    base: Params | None,
    start: Params,
    pairs: Sequence[Item],
    dev_accuracy: Callable[[Params], float],
    directory: Path,
    recovery_directory: Path,
    mesh: Mesh,
) -> Params:
    """Trains `start` on the pairs, or resumes interrupted training, and returns the measured parameters with the
    highest accuracy on dev pairs.

    directory: gets metrics.jsonl and TensorBoard's events.
    """
    steps, every, patience = config.optimizer.steps, config.early_stopping.every, config.early_stopping.patience
    update, sizes = pair_step(config, shape, base, pairs, mesh)

    at_start = start_state(start, config.optimizer, mesh)
    accuracy, stale = (to_global(np.float32(x), replicated(mesh)) for x in (-1.0, 0.0))
    with Recovery(recovery_directory, config.checkpoints.steps, config.checkpoints.keep) as recovery:
        untrained = Progress(at_start, jax.tree.map(jnp.copy, at_start.params), accuracy, stale)
        done, now, metrics = recovery.restore(untrained)
        blocks = blocks_of(pairs, config.pairs_together)
        order = shuffled_batches(len(pairs), config.batch_size, steps, [config.seed, 2], blocks)
        left = itertools.islice(order, done, None)
        with (
            metric_writer(directory, metrics) as write,
            progress("train the reranker", steps) as advance,
            Prefetch(feed_batch(*pair_batch([pairs[i] for i in index], sizes), mesh) for index in left) as ready,
        ):
            advance(done)
            for step, (parts, counts, real) in enumerate(ready, start=done + 1):
                if patience and now.stale >= patience:
                    break
                state, measured = update(now.state, base, parts, counts)
                now = now._replace(state=state)
                figures = {name: float(value) for name, value in jax.device_get(measured).items()}
                figures["real_tokens"] = real
                if step % every == 0 or step == steps:
                    figures["dev_accuracy"] = dev_accuracy(state.params)
                    now = _measured(now, figures["dev_accuracy"], mesh)
                metrics.append(write(step, **figures))
                advance(1, **figures)
                recovery.after(step, lambda: (now, metrics))  # noqa: B023  # called at once
    return now.best


def _measured(now: Progress, accuracy: float, mesh: Mesh) -> Progress:
    better = np.float32(accuracy) > float(now.accuracy)  # the state stores float32
    best = jax.tree.map(jnp.copy, now.state.params) if better else now.best
    numbers = (accuracy, 0.0) if better else (float(now.accuracy), float(now.stale) + 1)
    return Progress(now.state, best, *(to_global(np.float32(x), replicated(mesh)) for x in numbers))
