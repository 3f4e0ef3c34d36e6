"""Host loops around the jitted updates: batches in, metrics out one step late, so that the device never waits."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.candidates.engine import EngineConfig, Prompt, chunk_for, make_engine
from rerankjax.candidates.generate import problem_ids
from rerankjax.candidates.stop import stops_of
from rerankjax.loop import programs
from rerankjax.loop.config import ExperimentConfig, TrainingConfig
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, init_decoder
from rerankjax.model.lora import attach, init_adapter
from rerankjax.model.packing import Item
from rerankjax.model.sharding import replicated, shardings_of, to_global
from rerankjax.model.training import TrainState, feed_batch, start_state
from rerankjax.pairs.mining import Pair
from rerankjax.policy.ppo import Reward, init_policy
from rerankjax.policy.ppo_step import Drawn, make_ppo_step
from rerankjax.problems.problem import Problem, Solution
from rerankjax.progress import progress
from rerankjax.prompts.rows import shuffled_batches
from rerankjax.prompts.tokenizer import encode_completions
from rerankjax.reranker.bradley_terry import init_reranker
from rerankjax.reranker.pair_batches import blocks_of
from rerankjax.run.hosts import allgather_rows, copy_decoder_to_host, host_mesh_of, host_share
from rerankjax.run.metrics import WriteMetrics, metric_writer, write_waits
from rerankjax.run.prefetch import Prefetch
from rerankjax.run.reads import whole
from rerankjax.run.recovery import Recovery


@dataclasses.dataclass(frozen=True)
class StageIO:
    """What a trainer needs of its stage: the directory, the directory of its checkpoints, the mesh, and the title."""

    directory: Path
    recovery: Path
    mesh: Mesh
    title: str


def train_sft(
    config: ExperimentConfig,
    model: ModelConfig,
    problems: Sequence[Problem],
    corpus: Sequence[Solution],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    work: StageIO,
    start: Params | None = None,
) -> Params:
    """A decoder trained on the corpus's solutions from scratch or from `start`; with LoRA, an adapter over `start`."""
    prompt_of = {p.name: p.prompt for p in problems}
    prompts = tokenizer([prompt_of[s.problem] for s in corpus], add_special_tokens=False)["input_ids"]
    completions = encode_completions(tokenizer, [s.completion for s in corpus])
    items = [(prompt, (completion,)) for prompt, completion in zip(prompts, completions, strict=True)]
    key = jax.random.key(seed)
    if start is None:
        base, init = None, functools.partial(init_decoder, model)
        params = jax.jit(init, out_shardings=shardings_of(jax.eval_shape(init, key), work.mesh))(key)
    else:
        base, params = lora_base(config, start), init_trainable(config, model, start, key)
    program = programs.sft(config, model, params, base, work.mesh)
    return _fit(config, program, params, base, items, whole(config.sft), [seed, 0], work)


def train_reranker(
    config: ExperimentConfig,
    model: ModelConfig,
    training: TrainingConfig,
    base: Params | None,
    params: Params,
    pairs: Sequence[Pair],
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    seed: Sequence[int],
    work: StageIO,
) -> Params:
    """The reranker `params`, over `base` if that is not None, trained on the pairs."""
    prompt_of = {p.name: p.prompt for p in problems}
    prompts = tokenizer([prompt_of[p.problem] for p in pairs], add_special_tokens=False)["input_ids"]
    chosen, rejected = (
        encode_completions(tokenizer, texts) for texts in ([p.chosen for p in pairs], [p.rejected for p in pairs])
    )
    items = [(prompt, (a, b)) for prompt, a, b in zip(prompts, chosen, rejected, strict=True)]
    program = programs.reranker(config, model, training, params, base, work.mesh)
    blocks = blocks_of(items, config.mining.pairs_together)
    return _fit(config, program, params, base, items, training, seed, work, blocks)


def lora_base(config: ExperimentConfig, sft: Params) -> Params | None:
    """The frozen base of later training: the SFT model if the config asks for adapters, otherwise None."""
    return sft if config.lora.rank else None


def init_trainable(config: ExperimentConfig, model: ModelConfig, sft: Params, key: jax.Array) -> Params:
    """The parameters that training from the SFT model begins with: a new adapter, or the SFT model itself."""
    return init_adapter(model, whole(config.lora), key) if config.lora.rank else sft


def start_reranker(config: ExperimentConfig, model: ModelConfig, sft: Params, seed: int) -> Params:
    """An untrained reranker from the SFT model."""
    head, decoder = jax.random.key(seed), jax.random.fold_in(jax.random.key(seed), 1)
    return init_reranker(sft, head) | {"decoder": init_trainable(config, model, sft, decoder)}


def train_ppo(
    config: ExperimentConfig,
    model: ModelConfig,
    reward_model: ModelConfig,
    sft: Params,
    reward: Reward,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    seed: Sequence[int],
    key: jax.Array,
    dev_rates: Callable[[Params], dict[str, float]],
    work: StageIO,
) -> Params:
    """The policy with the best dev rate during training, or the SFT model if that is best: its adapter or decoder.

    model, reward_model: the shapes of the policy and of the reranker. dev_rates: maps a policy to its rates by name;
    `early_stopping.criterion` is one of these.
    """
    ppo, early_stopping, mesh = whole(config.ppo), whole(config.early_stopping), work.mesh
    prompts, draw = _drawer(config, model, problems, tokenizer, mesh)
    base, decoder = lora_base(config, sft), init_trainable(config, model, sft, jax.random.fold_in(key, 0))
    params, lora = init_policy(sft) | {"decoder": decoder}, programs.adapters(config, base)
    ppo_programs = programs.ppo(config, model, reward_model, params, base, sft, reward.params[0], mesh)
    step = make_ppo_step(ppo_programs.programs, ppo, mesh)
    state = start_state(params, ppo.optimizer, mesh)
    kl_coef, unknown = (to_global(np.float32(x), replicated(mesh)) for x in (ppo.kl_coef, -1.0))
    every = whole(config.checkpoints)
    with Recovery(work.recovery, every.iterations, every.keep) as recovery:
        # The best so far is the start, copied from the state for its placement: several hosts save it.
        best = jax.tree.map(jnp.copy, state.params["decoder"])
        done, now, metrics = recovery.restore(_Ppo(state, kl_coef, best, unknown))
        batches = shuffled_batches(len(problems), ppo.batch_size, ppo.iterations, seed)
        with (
            metric_writer(work.directory, metrics) as write,
            progress(work.title, ppo.iterations, "iterations") as advance,
        ):
            best_rate = float(now.best_rate)
            if not done:
                rates = dev_rates(sft)
                best_rate = rates[early_stopping.criterion]
                metrics.append(write(0, **rates))
            advance(done)
            for i, index in enumerate(itertools.islice(batches, done, None), start=done + 1):
                draw_key, order_key = jax.random.split(jax.random.fold_in(key, i))
                drawn = draw(attach(base, now.state.params["decoder"], lora), index, draw_key)
                batch = [prompts[n] for n in index], drawn
                state, kl_coef, step_metrics = step(now.state, base, sft, reward, *batch, order_key, now.kl_coef)
                figures = {name: float(value) for name, value in jax.device_get(step_metrics).items()}
                best = now.best
                if i % early_stopping.every == 0 or i == ppo.iterations:
                    rates = dev_rates(attach(base, state.params["decoder"], lora))
                    figures |= rates
                    if (rate := rates[early_stopping.criterion]) > best_rate:
                        best, best_rate = jax.tree.map(jnp.copy, state.params["decoder"]), rate
                now = _Ppo(state, kl_coef, best, to_global(np.float32(best_rate), replicated(mesh)))
                metrics.append(_checked(write, recovery, i, figures, batch))
                recovery.after(i, lambda: (now, metrics))  # noqa: B023  # called at once
                advance(score=figures["score"], kl=figures["kl"], best_dev=best_rate)
    return now.best


def _drawer(
    config: ExperimentConfig,
    model: ModelConfig,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    mesh: Mesh,
) -> tuple[list[list[int]], Callable[[Params, np.ndarray, jax.Array], list[Drawn]]]:
    """The problems' prompts as token ids, and (policy, indices of problems, key) -> a completion for each of them."""
    drawing = programs.rollout_drawing(config, jax.process_count())
    table, starts = stops_of(tokenizer, [p.stop_tokens for p in problems])
    encoded = tokenizer([p.prompt for p in problems], add_special_tokens=False)["input_ids"]
    numbered = list(map(Prompt, encoded, problem_ids(problems).tolist(), starts.tolist()))
    shape = EngineConfig(drawing.prompts_in_flight, 1, drawing.prompt_length, chunk_for(mesh))
    ends = tokenizer.eos_token_id, tokenizer.pad_token_id
    engine = make_engine(model, drawing.sampling, shape, *ends, host_mesh_of(mesh))

    def draw(policy: Params, index: np.ndarray, key: jax.Array) -> list[Drawn]:
        places = host_share(range(len(index)))
        own = [numbered[index[place]] for place in places]
        stream = engine.stream(copy_decoder_to_host(model, policy, mesh), own, samples=1, key=key, stops=table)
        rows = allgather_rows(
            [{"place": places[s.prompt], "tokens": s.tokens.tolist(), "finished": s.finished} for s in stream]
        )
        return [Drawn(row["tokens"], row["finished"]) for row in sorted(rows, key=operator.itemgetter("place"))]

    return encoded, draw


class _Ppo(NamedTuple):
    """The state that an iteration of PPO passes to the next."""

    state: TrainState
    kl_coef: jax.Array
    best: Params
    best_rate: jax.Array


def _fit(
    config: ExperimentConfig,
    program: programs.UpdatePrograms,
    params: Params,
    base: Params | None,
    items: Sequence[Item],
    training: TrainingConfig,
    seed: Sequence[int],
    work: StageIO,
    blocks: Sequence[Sequence[int]] | None = None,
) -> Params:
    """`params` after all steps of training; interrupted training resumes from its last checkpoint.

    blocks: see `shuffled_batches`.
    """
    steps, every = training.optimizer.steps, whole(config.checkpoints)
    prompt_limit, completion_limit = config.max_prompt_length, config.sampling.max_completion_length
    for number, (prompt, completions) in enumerate(items):
        if len(prompt) > prompt_limit or max(map(len, completions)) > completion_limit:
            raise ValueError(
                f"item {number} has a prompt of {len(prompt)} tokens and completions of {list(map(len, completions))}, "
                f"but max_prompt_length = {prompt_limit} and max_completion_length = {completion_limit}: drop the item "
                "or raise the limits"
            )

    with Recovery(work.recovery, every.steps, every.keep) as recovery:
        done, state, metrics = recovery.restore(start_state(params, training.optimizer, work.mesh))
        indices = itertools.islice(shuffled_batches(len(items), training.batch_size, steps, seed, blocks), done, None)
        with (
            metric_writer(work.directory, metrics) as write,
            progress(work.title, steps) as advance,
            Prefetch(
                feed_batch(*program.batch_of([items[i] for i in index], program.sizes), work.mesh) for index in indices
            ) as batches,
        ):
            advance(done)
            late = None

            def record() -> None:
                if late is not None:
                    metrics.append(_checked(write, recovery, *late))
                    advance(1, **{name: value for name, value in metrics[-1].items() if name != "step"})

            def snapshot() -> tuple[TrainState, list[dict[str, float]]]:
                nonlocal late
                record()
                late = None
                return state, metrics

            for step, (parts, counts, real) in enumerate(batches, start=done + 1):
                state, step_metrics = program.update(state, base, parts, counts)
                record()  # the previous step, while this one runs
                late = step, step_metrics | {"real_tokens": real}, parts
                recovery.after(step, snapshot)
            record()
            write_waits(work.directory, "input", batches.waited_seconds)
    return state.params


def _checked(
    write: WriteMetrics, recovery: Recovery, step: int, metrics: Mapping[str, Any], inputs: Any
) -> dict[str, float]:
    """Writes and returns the step's metrics. If the step diverged, saves its inputs and raises FloatingPointError."""
    try:
        return write(step, **jax.device_get(metrics))
    except FloatingPointError as error:
        path = recovery.keep_inputs(step, inputs)
        raise FloatingPointError(
            f"{error} The inputs of that step are in {path}, next to the last checkpoints."
        ) from None
