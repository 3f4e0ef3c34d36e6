"""Every device step of a run: its program, the arrays that the loop holds on the devices meanwhile, and its cost.

The programs are those of `loop.programs`, which the trainers run. The models that are on the devices during a step are
variables of `loop.train`, `loop.stages` and `loop.trainers`: a change of these variables needs the same change here.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from rerankjax.candidates.engine import chunk_for
from rerankjax.capacity.roofline import Cost, adam_cost, decode_cost, gradient_cost, prefill_cost
from rerankjax.capacity.run_shapes import RunShapes, device_bytes, dtype_bytes, open_run
from rerankjax.capacity.topology import Topology
from rerankjax.loop import programs
from rerankjax.loop.config import RERANKED, ExperimentConfig, TrainingConfig
from rerankjax.loop.models import Model
from rerankjax.loop.problem_sets import DEV, TRAIN
from rerankjax.loop.programs import DeviceProgram, Drawing, UpdatePrograms
from rerankjax.model.attention import skips
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.packing import PackConfig
from rerankjax.policy.ppo import OWN_SCORE, init_policy
from rerankjax.reranker.rerank import LOG_PROBABILITY
from rerankjax.run import checkpoint


@dataclasses.dataclass(frozen=True)
class Step:
    """One program of the run.

    arguments: those of the program, and what else its trainer holds, by kind ("weights", "optimiser", "cache",
    "batch"). resident: what else is on the devices. Both are trees of shapes with shardings; an array that is in them
    more than once counts once.
    """

    kind: str  # steps of a kind differ only in their sizes
    name: str
    program: DeviceProgram
    arguments: dict[str, Any]
    resident: Any
    cost: Cost  # of one call
    mesh: Mesh  # of the chips that share the step
    sizes: tuple[float, ...] = ()  # a step of the same kind with larger sizes needs at least as much memory
    temporaries: float = 0.0  # other bytes that it certainly makes and drops
    calls: int = 0  # in the run, for steps that train


def device_steps(config: ExperimentConfig, topology: Topology) -> list[Step]:
    """The steps of a run of `config` on `topology`, in the run's order: of each kind those that no other exceeds.

    Raises:
        ConfigError: a checkpoint's shape cannot be determined.
    """
    key = f"{topology.name} {config}"
    if key not in _known:
        _known[key] = largest(every_step(open_run(config, topology)))
    return _known[key]


_known: dict[str, list[Step]] = {}  # a search asks for the same steps again and again


def largest(steps: list[Step]) -> list[Step]:
    """The steps without those that another of their kind matches or exceeds in all sizes and in resident memory."""

    def sizes(step: Step) -> tuple[float, ...]:
        return device_bytes(step.resident, step.program.arguments), *step.sizes

    kept: list[Step] = []
    for step in sorted(steps, key=sizes, reverse=True):
        others = (sizes(other) for other in kept if other.kind == step.kind)
        if not any(all(a >= b for a, b in zip(other, sizes(step), strict=True)) for other in others):
            kept.append(step)
    return [step for step in steps if step in kept]


def every_step(run: RunShapes) -> list[Step]:
    """The steps of a run, in the run's order."""
    config = run.config
    generator, own = run.generator, run.own_reranker
    steps: list[Step] = []
    if config.evaluates_checkpoint:
        base = generator.abstract(run.mesh)
        for name in config.evaluation:
            steps += _evaluation(run, base, name, [])
    if not config.first_iteration and not config.sft.enabled:
        return steps
    if config.sft.enabled:
        steps += _sft(run, "SFT", generator, [])
    if not config.first_iteration:
        return [*steps, *(step for name in config.evaluation for step in _evaluation(run, run.sft, name, [run.sft]))]
    if own and config.sft.enabled:
        steps += _sft(run, "SFT of the reranker", run.reranker, [run.sft])
    resident = [run.sft, run.trunk]
    ppo = any(iteration.ppo and iteration.run for iteration in config.iterations.values())
    policies = [run.sft]
    if ppo and config.lora.rank:  # without adapters PPO's policy has the SFT model's shapes
        policies.append(run.attached(run.sft, run.trained(generator, run.sft)))
    for policy in policies:
        for split in (TRAIN, DEV):
            steps += _engine(run, policy, split, programs.drawing_of(config, split), resident)
        for name in config.evaluation:
            steps += _evaluation(run, policy, name, resident)
    steps += _reranker(run, "reranker", config.reranker_training, resident, again=False)
    if config.later_iterations():
        steps += _reranker(run, "reranker, again", config.retraining, resident, again=True)
    if ppo:
        steps += _ppo(run, resident)
    for split in (TRAIN, DEV, *config.evaluation):
        steps.append(_scoring(run, split, programs.drawing_of(config, split), resident))
    if config.selection.sft_log_probs:
        drawings = {split: programs.drawing_of(config, split) for split in (DEV, *config.evaluation)}
        steps += [_log_probs(run, policy, *drawing, resident) for policy in policies for drawing in drawings.items()]
    return steps


def _evaluation(run: RunShapes, policy: Params, name: str, resident: list[Any]) -> Iterator[Step]:
    yield from _engine(run, policy, name, programs.drawing_of(run.config, name), resident)
    yield from _engine(run, policy, f"{name}, greedy", programs.greedy_drawing(run.config, name), resident)


def _sft(run: RunShapes, name: str, model: Model, resident: list[Any]) -> Iterator[Step]:
    """SFT from scratch trains all parameters; SFT of a checkpoint trains what the config says."""
    config, training = run.config, run.config.sft
    start = model.abstract(run.mesh)
    base = run.base(start) if model.folder else None
    params = start if base is None else run.trained(model, start)
    program = programs.sft(config, model.shape, params, base, run.mesh)
    return _training(run, "SFT", name, model, training, program, base, [*resident, params], logits=True)


def _reranker(run: RunShapes, name: str, training: TrainingConfig, resident: list[Any], again: bool) -> Iterator[Step]:
    """again: training starts from a reranker that was read, not from the trunk."""
    config, model, base = run.config, run.reranker, run.base(run.trunk)
    params = run.with_head(model, run.trunk)
    if not again and base is None:
        params["decoder"] = run.trunk
    program = programs.reranker(config, model.shape, training, params, base, run.mesh)
    logits = config.reranker.lm_coef > 0
    times = len(config.later_iterations()) if again else 1
    return _training(run, "reranker", name, model, training, program, base, [*resident, params], logits, times)


def _training(
    run: RunShapes,
    kind: str,
    name: str,
    model: Model,
    training: TrainingConfig,
    program: UpdatePrograms,
    base: Params | None,
    resident: list[Any],
    logits: bool,
    times: int = 1,
) -> Iterator[Step]:
    """The two parts of an update: taking gradients, and applying them. times: how many such trainings the run has."""
    (state, _), sizes = program.apply.arguments, program.sizes
    total, params, _, part, _ = program.add.arguments
    optimizer, lora, itemsize = training.optimizer, programs.adapters(run.config, base), dtype_bytes(model.shape)
    most, logits_each = optimizer.microbatches * times, targets_of(sizes) if logits else 0
    yield Step(
        kind,
        name,
        program.add,
        {"weights": (params, base), "optimiser": (state.opt_state, state.step), "batch": (total, part)},
        resident,
        gradient_cost(model.shape, *attended(sizes), lora=lora, logits=logits_each, dtype_bytes=itemsize),
        run.mesh,
        (sizes.rows, sizes.length, sizes.targets),
        calls=most * optimizer.steps,
    )
    yield Step(
        f"{kind}, Adam",
        f"{name}, Adam",
        program.apply,
        {"weights": state.params, "optimiser": (state.opt_state, state.step), "batch": total},
        [*resident, base],
        adam_cost(model.shape, lora),
        run.mesh,
        calls=times * optimizer.steps,
    )


def attended(sizes: PackConfig) -> tuple[int, int]:
    """Rows and their tokens, for the cost of attention: long rows as rows of one of the longest sequences."""
    longest = sizes.longest or sizes.length
    return sizes.rows * sizes.length // longest, longest


def targets_of(sizes: PackConfig) -> int:
    """Targets of each of these rows."""
    return sizes.targets * (sizes.longest or sizes.length) // sizes.length


def _ppo(run: RunShapes, resident: list[Any]) -> list[Step]:
    config, mesh, ppo = run.config, run.mesh, run.config.ppo
    shape, reward_shape = run.generator.shape, run.reranker.shape
    base, best = run.base(run.sft), run.trained(run.generator, run.sft)
    value = jax.eval_shape(lambda trunk: init_policy(trunk)["value"], run.sft)
    params = {"decoder": run.trained(run.generator, run.sft), "value": checkpoint.abstract(value, mesh)}
    reward = run.with_head(run.reranker, run.trunk)
    reward["decoder"] = run.attached(run.trunk, reward["decoder"])
    rewards = (reward,) * (1 if ppo.reward == OWN_SCORE else config.reranker.members)
    ppo_programs = programs.ppo(config, shape, reward_shape, params, base, run.sft, reward, mesh)
    (state, total), sizes = ppo_programs.apply.arguments, ppo_programs.programs.sizes
    lora = programs.adapters(config, base)
    packed, part = ppo_programs.outputs.arguments[2], ppo_programs.add.arguments[3]
    held = [*resident, rewards, best]
    rows_and_tokens, logits = attended(sizes), targets_of(sizes)
    read = functools.partial(prefill_cost, shape, *rows_and_tokens, dtype_bytes=dtype_bytes(shape))
    scored = prefill_cost(reward_shape, *rows_and_tokens, logits=0, dtype_bytes=dtype_bytes(reward_shape))
    learning = gradient_cost(shape, *rows_and_tokens, lora=lora, logits=logits, dtype_bytes=dtype_bytes(shape))
    runs = sum(iteration.ppo and iteration.run for iteration in config.iterations.values())
    updates = runs * ppo.iterations * ppo.epochs * ppo.minibatches
    weights = state.params, base
    steps = [
        Step(
            "PPO reference",
            "PPO reference",
            ppo_programs.reference,
            {"weights": run.sft, "batch": packed},
            [*held, state],
            read(logits=logits),
            mesh,
        ),
        Step(
            "PPO scores",
            "PPO scores",
            ppo_programs.score,
            {"weights": reward, "batch": packed},
            [*held, state],
            scored,
            mesh,
        ),
        Step(
            "PPO outputs",
            "PPO outputs",
            ppo_programs.outputs,
            {"weights": weights, "batch": packed},
            [*held, state],
            read(logits=logits),
            mesh,
        ),
        Step(
            "PPO update",
            "PPO update",
            ppo_programs.add,
            {"weights": weights, "optimiser": (state.opt_state, state.step), "batch": (total, part)},
            held,
            learning + read(logits=logits),  # one more forward pass, whatever remat computes again
            mesh,
            calls=updates * ppo.microbatches,
        ),
        Step(
            "PPO update, Adam",
            "PPO update, Adam",
            ppo_programs.apply,
            {"weights": state.params, "optimiser": (state.opt_state, state.step), "batch": total},
            [*held, base],
            adam_cost(shape, lora),
            mesh,
            calls=updates,
        ),
    ]
    attached = run.attached(run.sft, state.params["decoder"])
    rollouts = programs.rollout_drawing(config, mesh.size // run.host_mesh.size)
    steps += _engine(run, attached, "PPO", rollouts, [*held, state])
    # Dev problems are drawn with the SFT model first, then with the policy: without adapters, these have equal shapes.
    drawn_with = [attached, *([run.sft] if config.lora.rank else [])]
    dev, beside = programs.dev_drawing(config), [*held, state]
    steps += [step for policy in drawn_with for step in _engine(run, policy, "PPO's dev", dev, beside)]
    if config.early_stopping.criterion == RERANKED:
        steps.append(_scoring(run, "PPO's dev", dev, beside))
    return steps


def _engine(run: RunShapes, policy: Params, name: str, drawing: Drawing, resident: list[Any]) -> Iterator[Step]:
    shape, mesh, P, C = (
        run.generator.shape,
        run.host_mesh,
        drawing.prompt_length,
        drawing.sampling.max_completion_length,
    )
    read, draw = programs.engine(shape, drawing, run.on_host(run.generator, policy), run.vocabulary, mesh)
    params, state, *prompts = read.arguments
    others, layers, _, *of_slots = draw.arguments
    rows, slots = drawing.prompts_in_flight, drawing.prompts_in_flight * drawing.slots
    sizes = drawing.slots, P, C
    yield Step(
        "read prompts",
        f"read prompts, {name}",
        read,
        {"weights": params, "cache": state, "batch": prompts},
        [*resident, layers],
        prefill_cost(shape, prompts[0].shape[0], P, dtype_bytes=dtype_bytes(shape)),
        mesh,
        sizes,
    )
    token = decode_cost(shape, slots, C, prefix=P, prefixes=rows, dtype_bytes=dtype_bytes(shape))
    yield Step(
        "draw",
        f"draw, {name}",
        draw,
        {"weights": (others, layers), "cache": state, "batch": of_slots},
        [*resident, params],
        token * chunk_for(mesh),
        mesh,
        sizes,
    )


def _scoring(run: RunShapes, split: str, drawing: Drawing, resident: list[Any]) -> Step:
    params = run.with_head(run.reranker, run.trunk)
    decoder = run.on_host(run.reranker, run.attached(run.trunk, params["decoder"]))
    params = {"decoder": decoder, "score": checkpoint.abstract({"score": params["score"]}, run.host_mesh)["score"]}
    pooling = run.config.reranker.pooling
    return _scorer(run, "scoring", f"scoring, {split}", run.reranker.shape, pooling, params, drawing, resident)


def _log_probs(run: RunShapes, policy: Params, split: str, drawing: Drawing, resident: list[Any]) -> Step:
    params = {"decoder": run.on_host(run.generator, policy)}
    kind, shape = "log-probabilities", run.generator.shape
    return _scorer(run, kind, f"{kind}, {split}", shape, LOG_PROBABILITY, params, drawing, resident)


def _scorer(
    run: RunShapes,
    kind: str,
    name: str,
    shape: ModelConfig,
    pooling: str,
    params: Params,
    drawing: Drawing,
    resident: list[Any],
) -> Step:
    mesh = run.host_mesh
    program = programs.scorer(shape, pooling, params, drawing, mesh)
    _, packed = program.arguments
    rows, length = packed.tokens.shape
    problem = drawing.prompt_length + drawing.samples * (drawing.sampling.max_completion_length + 1)
    span = min(length, problem) if skips(shape.attention) else length
    logits = span if pooling == LOG_PROBABILITY else 0
    return Step(
        kind,
        name,
        program,
        {"weights": params, "batch": packed},
        resident,
        prefill_cost(shape, rows * length // span, span, logits=logits, dtype_bytes=dtype_bytes(shape)),
        mesh,
        (rows, length),
    )
