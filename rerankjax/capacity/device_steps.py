"""Every device step of a run, as shapes on a mesh: what it is given, what the loop holds beside it, what it costs.

They are the programs that the loop jits, lowered for shapes. Beside a step stand the models that the loop has on the
devices when that step's turn comes: the SFT model, and its stage's own. They are the loop's variables, and what is
changed there is to be changed here.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rerankjax.candidates.engine import EngineConfig, make_engine
from rerankjax.capacity.roofline import Cost, cache_bytes, decode_cost, prefill_cost, score_cost, train_step_cost
from rerankjax.capacity.run_shapes import (
    Run,
    as_drawn,
    as_on_host,
    attached,
    decoder,
    device_bytes,
    head,
    head_shards,
    keys_of,
    masked,
    rows_of,
    start,
    stop_table,
    trained,
    training_state,
    with_head,
)
from rerankjax.capacity.topology import Topology
from rerankjax.loop.experiment import Experiment, TrainingConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import Rows, Tree
from rerankjax.model.sharding import replicated, row_shards
from rerankjax.policy.ppo import Reward, Rollout
from rerankjax.policy.ppo_step import make_ppo_programs
from rerankjax.policy.sft import make_sft_step
from rerankjax.reranker.bradley_terry import make_reranker_step
from rerankjax.reranker.rerank import make_scorer, padded_shape, prompts_of, together_of

EOS, PAD = 1, 0


@dataclasses.dataclass(frozen=True)
class Step:
    """One program of the run.

    `given` and `held` are trees of shapes with shardings, the arguments of the program by what they are, and what is
    held beside it; an array that is in them more than once is there once.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    given: dict[str, Any]
    held: Any
    cost: Cost  # of one call
    mesh: Mesh  # of the chips that share it
    cache: float = 0.0  # keys and values that it makes and drops, bytes a device
    made: float = 0.0  # what else it certainly makes and drops
    calls: int = 0  # in the run, where it trains
    variant: tuple[Any, ...] = ()  # what its program depends on, besides, that preflight changes


def device_steps(e: Experiment, topology: Topology) -> list[Step]:
    """The steps of a run of `e` on `topology`, in its order: of each kind the largest."""
    return _steps(e, topology.devices, topology.of_host, topology.attention)


@functools.lru_cache(maxsize=256)  # a search asks for the same ones again and again
def _steps(e: Experiment, devices: tuple[Any, ...], of_host: tuple[Any, ...] | None, attention: str) -> list[Step]:
    run = start(e, devices, of_host, attention)
    return [_sft(run), _reranker(run), *_ppo(run), *_sampling(run), _scoring(run)]


def _sft(run: Run) -> Step:
    e, (P, C) = run.e, run.lengths
    optimizer, batch_size = e.sft.optimizer, e.sft.batch_size
    step: Any = make_sft_step(e.model, optimizer, P, run.mesh)  # whole, whatever is adapted later
    state = training_state(decoder(e, run.mesh), optimizer, run.mesh)
    rows = Rows(*masked(run.mesh, batch_size, P + C))
    return Step(
        "SFT",
        lambda: step.lower(state, None, rows),
        {"weights": state.params, "optimiser": state.opt_state, "batch": rows},
        run.sft,  # what it began with
        train_step_cost(
            e.model,
            batch_size,
            P + C,
            logits=C,
            microbatches=optimizer.microbatches,
            dtype_bytes=run.dtype_bytes,
        ),
        run.mesh,
        made=device_bytes(state.params),  # gradients
        calls=optimizer.steps,
        variant=(e.model.remat, optimizer.microbatches),
    )


def reranker_training(e: Experiment) -> TrainingConfig:
    """That of the rerankers which takes most at a time."""

    def size(training: TrainingConfig) -> tuple[float, int]:
        return training.batch_size / training.optimizer.microbatches, training.batch_size

    return max((e.reranker_training, e.retraining), key=size) if e.arms else e.reranker_training


def _reranker(run: Run) -> Step:
    e, (P, C), training = run.e, run.lengths, reranker_training(run.e)
    step: Any = make_reranker_step(e.model, e.reranker, training.optimizer, run.mesh, e.lora)
    state = training_state(with_head(run, "score"), training.optimizer, run.mesh)
    pairs = Tree(*masked(run.mesh, training.batch_size, P), *masked(run.mesh, 2 * training.batch_size, C))
    return Step(
        "reranker",
        lambda: step.lower(state, run.base, pairs),
        {"weights": (state.params, run.base), "optimiser": state.opt_state, "batch": pairs},
        [run.sft, trained(run)],  # what it began with
        train_step_cost(
            e.model,
            training.batch_size,
            P + 2 * C,
            lora=e.lora,
            logits=C if e.reranker.lm_coef else 0,
            microbatches=training.optimizer.microbatches,
            dtype_bytes=run.dtype_bytes,
        ),
        run.mesh,
        made=device_bytes(state.params),  # gradients
        calls=e.reranker_training.optimizer.steps + len(e.arms) * e.retraining.optimizer.steps,
        variant=(e.model.remat, training.optimizer.microbatches),
    )


def _ppo(run: Run) -> list[Step]:
    e, mesh, (P, C), ppo = run.e, run.mesh, run.lengths, run.e.ppo
    programs: Any = make_ppo_programs(e.model, e.reranker.pooling, e.sampling, ppo, P, EOS, PAD, mesh, e.lora)
    state = training_state(with_head(run, "value"), ppo.optimizer, mesh)
    scorer = with_head(run, "score")
    scalar: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    reward = Reward(scorer | {"decoder": attached(run, scorer["decoder"])}, scalar, scalar)
    best = trained(run)
    prompts = (*masked(mesh, ppo.batch_size, P), keys_of(ppo.batch_size), stop_table(run, mesh))
    per_token = (rows_of(mesh, (ppo.batch_size, C), jnp.float32) for _ in range(4))
    rollout = Rollout(Rows(*masked(mesh, ppo.batch_size, P + C)), *per_token)
    rows = ppo.batch_size // ppo.minibatches
    index = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=replicated(mesh))

    read = functools.partial(prefill_cost, e.model, dtype_bytes=run.dtype_bytes)
    drawing = read(ppo.batch_size, P)
    for own in range(1, C):
        drawing += decode_cost(e.model, ppo.batch_size, own, prefix=P, dtype_bytes=run.dtype_bytes)
    judging = read(ppo.batch_size, P + C, logits=C) + read(ppo.batch_size, P + C, logits=0)
    # The forward pass is made again as a whole, whatever is rematerialised of it.
    again = read(rows // ppo.microbatches, P + C, logits=C) * ppo.microbatches
    update = train_step_cost(
        e.model,
        rows,
        P + C,
        lora=e.lora,
        logits=C,
        microbatches=ppo.microbatches,
        dtype_bytes=run.dtype_bytes,
    )
    cache = cache_bytes(e.model, ppo.batch_size * (P + C), run.dtype_bytes) / row_shards(mesh) / head_shards(run, mesh)
    return [
        Step(
            "PPO rollout",
            lambda: programs.gather.lower(state.params, run.base, run.sft, reward, *prompts),
            {"weights": (state.params, run.sft, reward), "batch": prompts[:2]},
            [state.opt_state, best],
            drawing + judging,
            mesh,
            cache=cache,
            made=device_bytes(as_drawn(run)),
        ),
        Step(
            "PPO update",
            lambda: programs.update.lower(state, run.base, rollout, index),
            {"weights": (state.params, run.base), "optimiser": state.opt_state, "batch": rollout},
            [run.sft, reward, best],
            update + again,
            mesh,
            made=device_bytes(state.params),  # gradients
            calls=ppo.iterations * ppo.epochs * ppo.minibatches * (1 + len(e.ppo_arms)),
            variant=(e.model.remat, ppo.microbatches),
        ),
    ]


def _sampling(run: Run) -> list[Step]:
    e = run.e
    splits = max(e.candidates.train, e.candidates.dev, e.candidates.test)
    read, draw = _engine(run, attached(run, trained(run)), splits, [run.sft])
    # PPO measures its policy on the dev problems, and holds what it trains meanwhile.
    state = training_state(with_head(run, "value"), e.ppo.optimizer, run.mesh)
    held = [run.sft, state, trained(run), trained(run)]  # the last: its reward model, and its best policy so far
    _, watch = _engine(run, attached(run, state.params["decoder"]), e.early_stopping.samples, held)
    return [read, draw, dataclasses.replace(watch, name="draw, in PPO")]


def _engine(run: Run, model: Params, samples: int, held: list[Any]) -> tuple[Step, Step]:
    e, mesh, (P, C) = run.e, run.of_host, run.lengths
    shape = EngineConfig(e.candidates.batch_size, samples, P)
    engine: Any = make_engine(e.model, e.sampling, shape, EOS, PAD, mesh)
    params, layers, state = engine.shapes(as_on_host(run, model))
    others = {name: part for name, part in params.items() if name != "layers"}
    together = 1 << (shape.rows - 1).bit_length()  # all rows are free, as at the beginning
    prompts = *masked(mesh, together, P), jax.ShapeDtypeStruct((together,), jnp.int32)
    slots = shape.rows * samples

    def of_slots(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((slots,), dtype)

    begin = of_slots(jnp.bool_), jax.eval_shape(lambda: jax.random.key(0)), of_slots(jnp.uint32), of_slots(jnp.uint32)
    step = decode_cost(e.model, slots, C, prefix=P, prefixes=shape.rows, dtype_bytes=run.dtype_bytes)
    return (
        Step(
            "read prompts",
            lambda: engine.read.lower(params, state, *prompts),
            {"weights": params, "cache": state},
            [*held, layers],
            prefill_cost(e.model, together, P, dtype_bytes=run.dtype_bytes),
            mesh,
        ),
        Step(
            "draw",
            lambda: engine.draw.lower(others, layers, state, stop_table(run, mesh), *begin),
            {"weights": (others, layers), "cache": state},
            [*held, params],
            step * shape.chunk,
            mesh,
        ),
    )


def _scoring(run: Run) -> Step:
    e, mesh, (P, C) = run.e, run.of_host, run.lengths
    model = attached(run, trained(run))
    given = {"decoder": as_on_host(run, model), "score": head(run, mesh)}
    samples = max(e.candidates.train, e.candidates.dev, e.candidates.test)
    shape = padded_shape(P, together_of(samples), C)
    problems = max(e.candidates.train_problems or e.problems.train, e.problems.dev, e.problems.test)
    prompts = prompts_of(shape, problems * -(-samples // shape[1]))
    scorer: Any = make_scorer(e.model, e.reranker.pooling, mesh)
    rows = *masked(mesh, prompts, shape[0]), *masked(mesh, prompts * shape[1], shape[2])
    cache = device_bytes(rows[0]) / 4 * cache_bytes(e.model, 1, run.dtype_bytes) / head_shards(run, mesh)
    return Step(
        "scoring",
        lambda: scorer.lower(given, *rows),
        {"weights": given, "batch": rows},
        [run.sft],
        score_cost(e.model, prompts, shape[0], shape[1], shape[2], dtype_bytes=run.dtype_bytes),
        mesh,
        cache=cache,
    )
