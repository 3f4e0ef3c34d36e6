"""The device programs of a run: jitted functions, and their arguments as shapes on a mesh.

The trainers and the stages take their functions and settings from here, and preflight takes the same functions with
their `arguments`: no other module knows which programs a config has. Parameters are arrays or shapes; of arrays only
the shapes are read. A config is an `ExperimentConfig` or a recording view of one (see `run.reads`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rerankjax.candidates.engine import EngineConfig, chunk_for, make_engine, read_size
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.loop.config import ExperimentConfig, TrainingConfig, sampling_of
from rerankjax.loop.problem_sets import DEV, TRAIN
from rerankjax.model.attention import skips
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.lora import FULL, LoraConfig
from rerankjax.model.packing import Item, PackConfig, pack
from rerankjax.model.sharding import by_row, placed, replicated, row_shards, shardings_of
from rerankjax.model.training import Counts, OptimizerConfig, TrainState, Update, batch_of, init_state, make_optimizer
from rerankjax.policy.ppo import PPOBatch
from rerankjax.policy.ppo_step import Programs, make_ppo_programs
from rerankjax.policy.sft import make_sft_step
from rerankjax.reranker.bradley_terry import make_reranker_step
from rerankjax.reranker.pair_batches import pair_batch
from rerankjax.reranker.rerank import make_scorer, scoring_sizes, whole_problem
from rerankjax.run.reads import whole


class DeviceProgram(NamedTuple):
    """A jitted function and its arguments. An argument without a sharding is wherever the host put it."""

    function: Any
    arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What programs depend on: tokens of the tokenizer, and the size of the stop strings' table (see `stops_of`)."""

    eos: int
    pad: int
    tokens: int
    stop_states: int


def adapters(config: ExperimentConfig, base: Params | None) -> LoraConfig:
    """The adapters that training over `base` trains; without a base, all parameters."""
    return FULL if base is None else whole(config.lora)


BatchOf = Callable[[Sequence[Item], PackConfig], tuple[list[Any], Counts]]  # as an update takes them


class UpdatePrograms(NamedTuple):
    """An update, what packs its batches with which sizes, and the update's programs, which preflight compiles.

    add: (summed gradients, parameters, base, part, counts) -> (gradients, metrics). apply: (state, gradients) -> state.
    """

    update: Update
    batch_of: BatchOf
    sizes: PackConfig
    add: DeviceProgram
    apply: DeviceProgram


def sft(
    config: ExperimentConfig, model: ModelConfig, params: Params, base: Params | None, mesh: Mesh
) -> UpdatePrograms:
    """The update of SFT."""
    training: TrainingConfig = whole(config.sft)
    update = make_sft_step(model, training.optimizer, mesh, adapters(config, base))
    return _update(config, model, update, batch_of, training, 1, params, base, mesh)


def reranker(
    config: ExperimentConfig,
    model: ModelConfig,
    training: TrainingConfig,
    params: Params,
    base: Params | None,
    mesh: Mesh,
) -> UpdatePrograms:
    """The update of a reranker on pairs, the chosen completion first."""
    loss = whole(config.reranker).loss
    update = make_reranker_step(model, loss, training.optimizer, mesh, adapters(config, base))
    return _update(config, model, update, pair_batch, training, 2, params, base, mesh)


def _update(
    config: ExperimentConfig,
    model: ModelConfig,
    update: Update,
    batch_of: BatchOf,
    training: TrainingConfig,
    each: int,
    params: Params,
    base: Params | None,
    mesh: Mesh,
) -> UpdatePrograms:
    """each: completions per sequence."""
    lengths = config.max_prompt_length, config.sampling.max_completion_length
    sizes = PackConfig.from_batch_size(
        training.batch_size, training.optimizer.microbatches, *lengths, each, row_shards(mesh), skips(model.attention)
    )
    state = _state(params, training.optimizer, mesh)
    part, counts = _part(batch_of, sizes, mesh)
    return UpdatePrograms(
        update,
        batch_of,
        sizes,
        DeviceProgram(update.add, (state.params, state.params, base, part, counts)),
        DeviceProgram(update.apply, (state, state.params)),
    )


def _part(batch_of: BatchOf, sizes: PackConfig, mesh: Mesh) -> tuple[Any, Any]:
    """A part of a batch, and the counts of the whole batch."""
    (empty,), _ = batch_of([], sizes)
    part = jax.tree.map(lambda a: _array(a.shape, a.dtype, by_row(mesh)), empty)
    return part, Counts(*(_array((), jnp.int32, replicated(mesh)) for _ in Counts._fields))


class PPOPrograms(NamedTuple):
    """PPO's programs (see `policy.ppo_step`), then each as preflight compiles it; add, apply: see `UpdatePrograms`."""

    programs: Programs
    reference: DeviceProgram
    score: DeviceProgram
    outputs: DeviceProgram
    add: DeviceProgram
    apply: DeviceProgram


def ppo(
    config: ExperimentConfig,
    model: ModelConfig,
    reward_model: ModelConfig,
    params: Params,
    base: Params | None,
    reference: Params,
    reranker: Params,
    mesh: Mesh,
) -> PPOPrograms:
    """params: the policy's, over `base`. reference: the SFT model's. reranker: one that the reward combines."""
    settings, sampling = whole(config.ppo), whole(config.sampling)
    lengths = config.max_prompt_length, sampling.max_completion_length
    shapes = model, config.reranker.pooling, sampling.temperature, settings, *lengths
    made = make_ppo_programs(*shapes, mesh, adapters(config, base), reward_model)
    state = _state(params, settings.optimizer, mesh)
    packed, counts = _part(batch_of, made.sizes, mesh)
    figures = (_array(packed.mask.shape, jnp.float32, by_row(mesh)) for _ in range(4))
    part = PPOBatch(packed, *figures)
    return PPOPrograms(
        made,
        DeviceProgram(made.reference, (reference, packed)),
        DeviceProgram(made.score, (reranker, packed)),
        DeviceProgram(made.outputs, (state.params, base, packed)),
        DeviceProgram(made.update.add, (state.params, state.params, base, part, counts)),
        DeviceProgram(made.update.apply, (state, state.params)),
    )


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How problems are sampled: samples per problem, settings, the longest prompt in tokens, how many prompts are in
    flight, how many samples of each (0: all), and how many prompts, at most, are read at once."""

    samples: int
    sampling: SamplingConfig
    prompt_length: int
    prompts_in_flight: int
    samples_in_flight: int = 0
    reads: int = EngineConfig.reads

    @property
    def slots(self) -> int:
        """Samples of one prompt that are in flight."""
        return min(self.samples, self.samples_in_flight or self.samples)


def drawing_of(config: ExperimentConfig, split: str) -> Drawing:
    """How training and dev problems, or those of an evaluation set, are sampled."""
    if split in (TRAIN, DEV):
        samples = config.candidates.train if split == TRAIN else config.candidates.dev
        sampling, length = config.sampling, config.max_prompt_length
    else:
        samples = config.evaluation[split].samples
        sampling, length = sampling_of(config, split)
    return Drawing(samples, whole(sampling), length, *_in_flight(config))


def _in_flight(config: ExperimentConfig) -> tuple[int, int]:
    return config.candidates.prompts_in_flight, config.candidates.samples_in_flight


def greedy_drawing(config: ExperimentConfig, name: str) -> Drawing:
    """How an evaluation set's greedy answers are drawn: with as many prompts in flight as need no more memory for keys
    and values than its samples do; samples of one prompt share the prompt's."""
    sampling, length = sampling_of(config, name)
    greedy = dataclasses.replace(whole(sampling), temperature=0.0, top_p=1.0, top_k=0)
    completion, slots = greedy.max_completion_length, drawing_of(config, name).slots
    prompts = config.candidates.prompts_in_flight
    more = (length + slots * completion) // (length + completion)
    return Drawing(1, greedy, length, more * prompts, reads=prompts)


def dev_drawing(config: ExperimentConfig) -> Drawing:
    """How PPO's early stopping samples the dev problems."""
    return Drawing(
        config.early_stopping.samples,
        whole(config.sampling),
        config.max_prompt_length,
        *_in_flight(config),
    )


def rollout_drawing(config: ExperimentConfig, hosts: int) -> Drawing:
    """How each of `hosts` hosts draws its share of an iteration's completions."""
    in_flight = config.ppo.rollouts_in_flight or config.ppo.batch_size // hosts
    return Drawing(1, whole(config.sampling), config.max_prompt_length, in_flight)


class EnginePrograms(NamedTuple):
    """Reading prompts: (parameters, state, prompts, mask, rows) -> state; and drawing a chunk of tokens: (parameters
    without layers, layers, state, stop table, which slots begin, key, prompts, samples, starts) -> state."""

    read: DeviceProgram
    draw: DeviceProgram


def engine(model: ModelConfig, drawing: Drawing, params: Params, vocabulary: Vocabulary, mesh: Mesh) -> EnginePrograms:
    """The sampling engine's programs at full load: each row takes a longest prompt, and each slot a sample."""
    shape = EngineConfig(
        drawing.prompts_in_flight, drawing.slots, drawing.prompt_length, chunk_for(mesh), drawing.reads
    )
    made: Any = make_engine(model, drawing.sampling, shape, vocabulary.eos, vocabulary.pad, mesh)
    params, layers, state = made.shapes(params)
    others = {name: part for name, part in params.items() if name != "layers"}
    together, slots = read_size(min(shape.rows, shape.reads), row_shards(mesh)), shape.rows * shape.slots
    stops = _array((vocabulary.stop_states, vocabulary.tokens), jnp.int32)
    begin, key = _array((slots,), jnp.bool_), jax.eval_shape(jax.random.key, 0)
    of_slots = (_array((slots,), dtype) for dtype in (jnp.uint32, jnp.uint32, jnp.int32))
    return EnginePrograms(
        DeviceProgram(
            made.read, (params, state, *_tokens(together, shape.prompt_length), _array((together,), jnp.int32))
        ),
        DeviceProgram(made.draw, (others, layers, state, stops, begin, key, *of_slots)),
    )


def scorer(model: ModelConfig, pooling: str, params: Params, drawing: Drawing, mesh: Mesh) -> DeviceProgram:
    """Scores of samples, by a reranker or (`LOG_PROBABILITY`) a policy: (parameters, packed) -> scores.

    The largest batch, for the longest prompts with completions of the greatest length, and an end-of-text token behind
    each completion.
    """
    prompt, completion = drawing.prompt_length, drawing.sampling.max_completion_length + 1
    problem = whole_problem(prompt, prompt + drawing.samples * completion)
    sizes = scoring_sizes(prompt + completion, problem, 1 << 30, row_shards(mesh), skips(model.attention))
    (empty,), _ = pack([], sizes)
    packed = jax.tree.map(lambda a: _array(a.shape, a.dtype, by_row(mesh)), empty)
    return DeviceProgram(make_scorer(model, pooling, mesh), (params, packed))


def _state(params: Params, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    """The state that `start_state` makes, as shapes."""
    state = jax.eval_shape(lambda p: init_state(p, make_optimizer(optimizer)), params)
    return placed(state, shardings_of(state, mesh))


def _array(shape: tuple[int, ...], dtype: Any, sharding: Any = None) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _tokens(rows: int, length: int) -> tuple[Any, Any]:
    """Tokens and their mask."""
    return _array((rows, length), jnp.int32), _array((rows, length), jnp.bool_)
