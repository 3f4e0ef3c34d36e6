"""Host loops around the jitted updates: batches in, metrics out a step late, so that the device never waits."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.candidates.generate import problem_ids
from rerankjax.candidates.stop import stops_of
from rerankjax.loop.experiment import Experiment, TrainingConfig
from rerankjax.loop.metrics import WriteMetrics, metric_writer
from rerankjax.model.decoder import Params, init_decoder
from rerankjax.model.likelihood import Rows, Tree
from rerankjax.model.lora import attach, init_adapter
from rerankjax.model.sharding import replicated
from rerankjax.model.training import OptimizerConfig, TrainState, init_state, make_optimizer
from rerankjax.pairs.mining import Pair
from rerankjax.policy.ppo import Reward, init_policy, make_ppo_step
from rerankjax.policy.sft import make_sft_step
from rerankjax.problems.problem import Problem, Solution
from rerankjax.progress import Advance, progress
from rerankjax.prompts.rows import pad_completions, pad_prompts, pad_rows, shuffled_batches
from rerankjax.prompts.tokenizer import encode_completions
from rerankjax.reranker.bradley_terry import init_reranker, make_reranker_step


def train_sft(
    e: Experiment,
    problems: Sequence[Problem],
    corpus: Sequence[Solution],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    mesh: Mesh,
    directory: Path,
) -> Params:
    """The SFT model: a decoder trained from scratch on the corpus's solutions."""
    prompt_of = {p.name: p.prompt for p in problems}
    tokens, mask = _rows(e, tokenizer, [prompt_of[s.problem] for s in corpus], [s.completion for s in corpus])
    update = make_sft_step(e.model, e.sft.optimizer, e.max_prompt_length, mesh)
    params = jax.jit(lambda key: init_decoder(e.model, key))(jax.random.key(seed))
    batches = (
        (None, Rows(tokens[i], mask[i]))
        for i in shuffled_batches(len(corpus), e.sft.batch_size, e.sft.optimizer.steps, [seed, 0])
    )
    return _fit(
        update, _start(params, e.sft.optimizer, mesh), batches, e.sft.optimizer.steps, f"seed {seed}: SFT", directory
    ).params


def train_reranker(
    e: Experiment,
    training: TrainingConfig,
    base: Params | None,
    params: Params,
    pairs: Sequence[Pair],
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    seed: Sequence[int],
    mesh: Mesh,
    directory: Path,
    title: str,
) -> Params:
    """The reranker `params`, over `base` if that is not None, trained on the pairs."""
    prompt_of = {p.name: p.prompt for p in problems}
    encoded = tokenizer([prompt_of[p.problem] for p in pairs], add_special_tokens=False)["input_ids"]
    prompts, prompt_mask = pad_prompts(encoded, e.max_prompt_length, tokenizer.pad_token_id)
    C = e.sampling.max_completion_length
    texts = [text for p in pairs for text in (p.better, p.worse)]
    rows = pad_completions(encode_completions(tokenizer, texts), C, tokenizer.pad_token_id)
    completions, mask = (a.reshape(-1, 2, C) for a in rows)
    update = make_reranker_step(e.model, e.reranker, training.optimizer, mesh, e.lora)
    batches = (
        (base, Tree(prompts[i], prompt_mask[i], completions[i].reshape(-1, C), mask[i].reshape(-1, C)))
        for i in shuffled_batches(len(pairs), training.batch_size, training.optimizer.steps, seed)
    )
    state = _start(params, training.optimizer, mesh)
    return _fit(update, state, batches, training.optimizer.steps, title, directory).params


def frozen(e: Experiment, sft: Params) -> Params | None:
    """What every later training leaves as it is: the SFT model if the config asks for adapters, else nothing."""
    return sft if e.lora.rank else None


def start_decoder(e: Experiment, sft: Params, key: jax.Array) -> Params:
    """What training from the SFT model begins with: a new adapter, or that model itself."""
    return init_adapter(e.model, e.lora, key) if e.lora.rank else sft


def start_reranker(e: Experiment, sft: Params, seed: int) -> Params:
    """An untrained reranker from the SFT model."""
    head, decoder = jax.random.key(seed), jax.random.fold_in(jax.random.key(seed), 1)
    return init_reranker(sft, head) | {"decoder": start_decoder(e, sft, decoder)}


def train_ppo(
    e: Experiment,
    sft: Params,
    reward: Reward,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    seed: Sequence[int],
    key: jax.Array,
    mesh: Mesh,
    dev_pass_rate: Callable[[Params], float],
    directory: Path,
    title: str,
) -> Params:
    """The policy that solved most dev problems on the way, the SFT model itself among them: its adapter or decoder."""
    ppo, P = e.ppo, e.max_prompt_length
    step = make_ppo_step(
        e.model, e.reranker.pooling, e.sampling, ppo, P, tokenizer.eos_token_id, tokenizer.pad_token_id, mesh, e.lora
    )
    stops = stops_of(tokenizer, problems[0].stop_tokens)
    encoded = tokenizer([p.prompt for p in problems], add_special_tokens=False)["input_ids"]
    prompts, mask = pad_prompts(encoded, P, tokenizer.pad_token_id)
    ids = problem_ids(problems)
    base, best = frozen(e, sft), start_decoder(e, sft, jax.random.fold_in(key, 0))
    state = _start(init_policy(sft) | {"decoder": best}, ppo.optimizer, mesh)
    kl_coef = jnp.float32(ppo.kl_coef)
    best_rate = dev_pass_rate(sft)
    with metric_writer(directory) as write, progress(title, ppo.iterations, "iterations") as advance:
        write(0, pass_rate=best_rate)
        for i, batch in enumerate(shuffled_batches(len(problems), ppo.batch_size, ppo.iterations, seed), start=1):
            of_batch = prompts[batch], mask[batch], ids[batch], jax.random.fold_in(key, i)
            state, kl_coef, metrics = step(state, base, sft, reward, *of_batch, kl_coef, stops)
            figures = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if i % e.early_stopping.every == 0 or i == ppo.iterations:
                figures["pass_rate"] = rate = dev_pass_rate(attach(base, state.params["decoder"], e.lora))
                if rate > best_rate:
                    best, best_rate = jax.tree.map(jnp.copy, state.params["decoder"]), rate
            write(i, **figures)
            advance(score=figures["score"], kl=figures["kl"], best_dev=best_rate)
    return best


def _rows(
    e: Experiment, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    return pad_rows(
        tokenizer(list(prompts), add_special_tokens=False)["input_ids"],
        encode_completions(tokenizer, completions),
        e.max_prompt_length,
        e.sampling.max_completion_length,
        tokenizer.pad_token_id,
    )


def _start(params: Params, config: OptimizerConfig, mesh: Mesh) -> TrainState:
    """A state with parameters of its own: updates donate them, and the ones it starts from are still wanted."""
    optimizer = make_optimizer(config)
    start = jax.jit(lambda p: init_state(jax.tree.map(jnp.copy, p), optimizer), out_shardings=replicated(mesh))
    return start(params)


def _fit(
    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    batches: Iterable[tuple[Any, ...]],
    steps: int,
    title: str,
    directory: Path,
) -> TrainState:
    late = None
    with metric_writer(directory) as write, progress(title, steps) as advance:
        for step, batch in enumerate(batches, start=1):
            state, metrics = update(state, *batch)
            if late is not None:
                _record(write, advance, *late)
            late = step, metrics
        if late is not None:
            _record(write, advance, *late)
    return state


def _record(write: WriteMetrics, advance: Advance, step: int, metrics: dict[str, jax.Array]) -> None:
    figures = {name: float(value) for name, value in jax.device_get(metrics).items()}
    write(step, **figures)
    advance(1, **figures)
