"""The device programs of a run: jitted functions, and the arguments that they are called with, as shapes on a mesh.

The trainers and the stages take their functions and settings from here, and preflight takes the same functions with
their `arguments`: nothing else knows which programs a config has. Parameters are arrays or shapes; only the shapes of
arrays are looked at. A config is an `ExperimentConfig` or a recording view of one (see `run.reads`).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rerankjax.candidates.engine import EngineConfig, make_engine
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.loop.config import ExperimentConfig, TrainingConfig, sampling_of
from rerankjax.loop.problem_sets import DEV, TRAIN
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import Rows, Tree
from rerankjax.model.lora import FULL, LoraConfig
from rerankjax.model.sharding import by_row, placed, replicated, row_shards, shardings_of
from rerankjax.model.training import OptimizerConfig, TrainState, init_state, make_optimizer
from rerankjax.policy.ppo import Reward, Rollout
from rerankjax.policy.ppo_step import Programs, make_ppo_programs
from rerankjax.policy.sft import make_sft_step
from rerankjax.reranker.bradley_terry import make_reranker_step
from rerankjax.reranker.rerank import make_scorer, padded_shape, prompts_of, together_of
from rerankjax.run.reads import whole


class DeviceProgram(NamedTuple):
    """A jitted function and its arguments. What has no sharding is wherever the host put it."""

    function: Any
    arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What programs depend on of the tokenizer, and of the problems' stop strings: the size of `stops_of`'s table."""

    eos: int
    pad: int
    tokens: int
    stop_states: int


def adapters(config: ExperimentConfig, base: Params | None) -> LoraConfig:
    """What training over `base` trains; without a base, all parameters."""
    return FULL if base is None else whole(config.lora)


def sft(config: ExperimentConfig, model: ModelConfig, params: Params, base: Params | None, mesh: Mesh) -> DeviceProgram:
    """The update of SFT: (state, base, rows) -> (state, metrics)."""
    training: TrainingConfig = whole(config.sft)
    P, C = config.max_prompt_length, config.sampling.max_completion_length
    update = make_sft_step(model, training.optimizer, P, mesh, adapters(config, base))
    rows = Rows(*_tokens(training.batch_size, P + C, by_row(mesh)))
    return DeviceProgram(update, (_state(params, training.optimizer, mesh), base, rows))


def reranker(
    config: ExperimentConfig,
    model: ModelConfig,
    training: TrainingConfig,
    params: Params,
    base: Params | None,
    mesh: Mesh,
) -> DeviceProgram:
    """The update of a reranker: (state, base, pairs) -> (state, metrics)."""
    P, C = config.max_prompt_length, config.sampling.max_completion_length
    loss = whole(config.reranker).loss
    update = make_reranker_step(model, loss, training.optimizer, mesh, adapters(config, base))
    rows = by_row(mesh)
    pairs = Tree(*_tokens(training.batch_size, P, rows), *_tokens(2 * training.batch_size, C, rows))
    return DeviceProgram(update, (_state(params, training.optimizer, mesh), base, pairs))


class PPOPrograms(NamedTuple):
    """The large programs of an iteration of PPO, in their order."""

    rollout: DeviceProgram
    outputs: DeviceProgram
    update: DeviceProgram

    @property
    def functions(self) -> Programs:
        return Programs(*(program.function for program in self))


def ppo(
    config: ExperimentConfig,
    model: ModelConfig,
    reward_model: ModelConfig,
    params: Params,
    base: Params | None,
    reference: Params,
    reward: Params,
    vocabulary: Vocabulary,
    mesh: Mesh,
) -> PPOPrograms:
    """PPO's programs (see `policy.ppo_step`). params: the policy's, over `base`; reward: the reranker's."""
    settings, sampling = whole(config.ppo), whole(config.sampling)
    P, C, B = config.max_prompt_length, sampling.max_completion_length, settings.batch_size
    ends = vocabulary.eos, vocabulary.pad
    shapes = model, config.reranker.pooling, sampling, settings, P, *ends
    functions = make_ppo_programs(*shapes, mesh, adapters(config, base), reward_model)
    rows = by_row(mesh)
    state = _state(params, settings.optimizer, mesh)
    prompts = *_tokens(B, P, rows), _array((B,), jax.eval_shape(jax.random.key, 0).dtype, rows)
    stops = _array((vocabulary.stop_states, vocabulary.tokens), jnp.int32, replicated(mesh))
    scaled: Any = Reward(reward, _array((), jnp.float32), _array((), jnp.float32))
    sampled: Any = Rows(*_tokens(B, P + C, rows))
    rollout: Any = Rollout(sampled, *(_array((B, C), jnp.float32, rows) for _ in range(4)))
    index = _array((B // settings.minibatches,), jnp.int32)
    starts = _array((B,), jnp.int32, rows)
    return PPOPrograms(
        DeviceProgram(functions.gather, (state.params, base, reference, scaled, *prompts, stops, starts)),
        DeviceProgram(functions.outputs, (state.params, base, sampled, index)),
        DeviceProgram(functions.update, (state, base, rollout, index)),
    )


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How problems are sampled: how often each, how, its longest prompt, and how many are in flight."""

    samples: int
    sampling: SamplingConfig
    prompt_length: int
    prompts_in_flight: int


def drawing_of(config: ExperimentConfig, split: str) -> Drawing:
    """How training and dev problems, or those of an evaluation set, are sampled."""
    if split in (TRAIN, DEV):
        samples = config.candidates.train if split == TRAIN else config.candidates.dev
        sampling, length = config.sampling, config.max_prompt_length
    else:
        samples = config.evaluation[split].samples
        sampling, length = sampling_of(config, split)
    return Drawing(samples, whole(sampling), length, config.candidates.prompts_in_flight)


def greedy_drawing(config: ExperimentConfig, name: str) -> Drawing:
    """How an evaluation set's greedy answers are drawn."""
    sampling, length = sampling_of(config, name)
    greedy = dataclasses.replace(whole(sampling), temperature=0.0, top_p=1.0, top_k=0)
    return Drawing(1, greedy, length, config.candidates.prompts_in_flight)


def dev_drawing(config: ExperimentConfig) -> Drawing:
    """How PPO's early stopping samples the dev problems."""
    return Drawing(
        config.early_stopping.samples,
        whole(config.sampling),
        config.max_prompt_length,
        config.candidates.prompts_in_flight,
    )


class EnginePrograms(NamedTuple):
    """Reading prompts: (parameters, state, prompts, mask, rows) -> state; and drawing a chunk of tokens: (parameters
    without layers, layers, state, stop table, which slots begin, key, prompts, samples, starts) -> state."""

    read: DeviceProgram
    draw: DeviceProgram


def engine(model: ModelConfig, drawing: Drawing, params: Params, vocabulary: Vocabulary, mesh: Mesh) -> EnginePrograms:
    """The sampling engine's programs: all rows take a prompt, of the greatest length, and all slots a sample."""
    shape = EngineConfig(drawing.prompts_in_flight, drawing.samples, drawing.prompt_length)
    made: Any = make_engine(model, drawing.sampling, shape, vocabulary.eos, vocabulary.pad, mesh)
    params, layers, state = made.shapes(params)
    others = {name: part for name, part in params.items() if name != "layers"}
    together, slots = 1 << (shape.rows - 1).bit_length(), shape.rows * shape.slots
    stops = _array((vocabulary.stop_states, vocabulary.tokens), jnp.int32)
    begin, key = _array((slots,), jnp.bool_), jax.eval_shape(jax.random.key, 0)
    of_slots = (_array((slots,), dtype) for dtype in (jnp.uint32, jnp.uint32, jnp.int32))
    return EnginePrograms(
        DeviceProgram(
            made.read, (params, state, *_tokens(together, shape.prompt_length), _array((together,), jnp.int32))
        ),
        DeviceProgram(made.draw, (others, layers, state, stops, begin, key, *of_slots)),
    )


def scorer(config: ExperimentConfig, model: ModelConfig, params: Params, drawing: Drawing, mesh: Mesh) -> DeviceProgram:
    """The reranker's scores of samples: (parameters, prompts, mask, completions, mask) -> scores.

    The largest batch: as many of the longest prompts as it takes, each with the longest completions, which an
    end-of-text token stands behind.
    """
    longest = drawing.sampling.max_completion_length + 1
    shape = P, together, C = padded_shape(drawing.prompt_length, together_of(drawing.samples), longest)
    count = prompts_of(shape, 1 << 30)
    split = by_row(mesh) if count % row_shards(mesh) == 0 else replicated(mesh)
    rows = *_tokens(count, P, split), *_tokens(count * together, C, split)
    return DeviceProgram(make_scorer(model, config.reranker.pooling, mesh), (params, *rows))


def _state(params: Params, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    """As `start_state` makes it."""
    state = jax.eval_shape(lambda p: init_state(p, make_optimizer(optimizer)), params)
    return placed(state, shardings_of(state, mesh))


def _array(shape: tuple[int, ...], dtype: Any, sharding: Any = None) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _tokens(rows: int, length: int, sharding: Any = None) -> tuple[Any, Any]:
    """Tokens and their mask."""
    return _array((rows, length), jnp.int32, sharding), _array((rows, length), jnp.bool_, sharding)
