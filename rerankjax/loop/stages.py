"""The stages of one seed. Each reads files of the run directory and writes its own, once (see `run.rundir`).

seedN/problems                            problems by split, the removed problems, and the synthetic SFT corpus
seedN/models/NAME                         the shape of the generator, with its tokenizer, and of a separate reranker
seedN/policies/NAME                       sft; ppo, ppo2-ITERATION, ...: checkpoint and metrics
seedN/candidates/POLICY-SPLIT             sampled and executed; given-train: the training problems' own solutions
seedN/greedy/POLICY-SET                   a policy's greedy answers to an evaluation set, executed
seedN/rerankers/NAME                      sft: SFT of a separate reranker; by iteration: pairs, checkpoint and metrics;
                                          of several members, ITERATION-1, ...: these, and ITERATION: their mean
seedN/scores/RERANKER/POLICY-SPLIT        a reranker's score of each candidate
seedN/export                              the last reranker in Hugging Face's format (see `export`)

If the config asks for adapters, the checkpoints of rerankers and of PPO's policies hold adapters over the SFT model.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rerankjax.candidates.candidate import Candidate, read_candidates, write_candidates
from rerankjax.candidates.drawn import digest, drawn_candidates
from rerankjax.candidates.generate import generate
from rerankjax.loop import trainers
from rerankjax.loop.config import PASS_RATE, RERANKED, ConfigError, ExperimentConfig, TrainingConfig
from rerankjax.loop.models import Model
from rerankjax.loop.problem_sets import DEV, TRAIN
from rerankjax.loop.programs import Drawing, dev_drawing, drawing_of, greedy_drawing
from rerankjax.loop.seed_run import SeedRun
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.lora import attach, attach_trunk, merge
from rerankjax.pairs.mining import Pair, later_pairs, partition_by_verdict, sample_pairs, write_pairs
from rerankjax.policy.ppo import Reward
from rerankjax.problems.problem import Problem, Solution
from rerankjax.progress import progress
from rerankjax.prompts.ask import ProblemSet
from rerankjax.prompts.tokenizer import encode_completions
from rerankjax.reranker.rerank import LOG_PROBABILITY
from rerankjax.results.selection import best_of
from rerankjax.run import checkpoint
from rerankjax.run.hosts import allgather_rows, copy_decoder_to_host, host_mesh_of, host_share, is_first
from rerankjax.run.metrics import write_real_tokens, write_waits
from rerankjax.run.reads import whole
from rerankjax.run.scoring import host_reranker, score_shares
from rerankjax.sandbox import Verdict
from rerankjax.verdicts.execution import VerdictCache, execute, verdict_cache

ParamsLoader = Callable[[], Params]  # loads on demand: between stages only the SFT model stays on the devices
BASE, SFT = "base", "sft"


def sft_model(run: SeedRun, model: Model) -> Params:
    """Stage A of the generator or of a separate reranker: the SFT model's parameters.

    Raises:
        ConfigError: there is no solution to learn from.
    """
    stage = _sft_stage(run, model)
    if not run.config.sft.enabled:
        return model.load(run.mesh)
    given = given_solutions(run)

    def fill(directory: Path, config: ExperimentConfig) -> None:
        right = itertools.compress(given, fits_context(config, run, given))
        corpus = [*run.corpus, *(Solution(c.problem, c.completion, True) for c in right if c.passed)]
        if not corpus:
            raise ConfigError(
                f"config.sft.enabled = True: none of the {len(given)} given solutions passes its tests and fits in "
                "sampling.max_completion_length; give problems with solutions, or use False"
            )
        start = model.load(run.mesh) if model.folder else None
        work = run.work(directory, stage, "SFT" if model is run.generator else "SFT of the reranker")
        asked = run.problems[TRAIN].asked
        trained = trainers.train_sft(config, model.shape, asked, corpus, run.tokenizer, run.seed, work, start)
        checkpoint.save(directory / "checkpoint", trained)

    inputs = [f"models/{model.name}", *(["candidates/given-train"] if given else [])]
    path = run.stage(stage, inputs, fill, everywhere=True) / "checkpoint"
    if not model.folder:
        return checkpoint.restore(path, run.decoder_like(model))
    if not run.config.lora.rank:
        return checkpoint.restore(path, run.decoder_like(model))
    base = model.load(run.mesh)
    adapter = checkpoint.restore(path, run.reranker_like(model)["decoder"])
    return merge(attach(base, adapter, run.config.lora))


def _sft_stage(run: SeedRun, model: Model) -> str:
    return "policies/sft" if model is run.generator else "rerankers/sft"


def start_policy(run: SeedRun) -> str:
    """The name of the policy that iterations start from: `SFT`, or without SFT the checkpoint itself, `BASE`."""
    return SFT if run.config.sft.enabled else BASE


def stage_of(run: SeedRun, policy: str) -> str:
    """The stage that writes the policy."""
    return f"models/{run.generator.name}" if policy == BASE else f"policies/{policy}"


def given_solutions(run: SeedRun) -> list[Candidate]:
    """The solutions that training problems come with, as answers, executed."""
    split = run.problems[TRAIN]
    solved = [p for p in split.originals if p.solution]
    if not solved:
        return []

    def fill(directory: Path, config: ExperimentConfig) -> None:
        answers = [split.answer(p.name, p.solution or "") for p in solved]
        lengths = map(len, encode_completions(run.tokenizer, answers))
        rows = zip(solved, answers, lengths, strict=True)
        candidates = [Candidate(p.name, 0, text, 0.0, length, True) for p, text, length in rows]
        executed = execute(whole(config.sandbox), split.asked, candidates, source=_source(split))
        write_candidates(directory / "candidates.parquet", executed)

    return read_candidates(run.stage("candidates/given-train", [], fill) / "candidates.parquet")


def candidates(run: SeedRun, policy: str, params: ParamsLoader, split: str) -> list[Candidate]:
    """Stage D: the policy's samples of a split, executed, grouped by problem.

    The start policy's are taken from `candidates.drawn` if that has them.
    """
    problems = run.sampled_problems(split)
    stage = f"candidates/{policy}-{split}"
    drawn = policy == start_policy(run) and bool(problems.asked) and problems.asked[0].name in run.drawn

    def fill(directory: Path, config: ExperimentConfig) -> None:
        view, drawing = dataclasses.replace(run, config=config), drawing_of(config, split)
        if split == TRAIN:
            _ = config.candidates.train_problems  # recorded: it decides which problems these are
        title = f"{policy}, {'' if drawn else 'sample and '}execute {split}"
        _write_candidates(view, directory, split, problems, params, drawing, run.key(stage), title, drawn)

    facts = {"candidates.drawn": digest(run.drawn, problems.asked)} if drawn else {}
    path = run.stage(stage, [stage_of(run, policy)], fill, everywhere=True, facts=facts)
    return read_candidates(path / "candidates.parquet")


def greedy(run: SeedRun, policy: str, params: ParamsLoader, split: str) -> list[Candidate]:
    """The policy's greedy answer to each problem of an evaluation set, executed."""
    stage = f"greedy/{policy}-{split}"

    def fill(directory: Path, config: ExperimentConfig) -> None:
        view, drawing = dataclasses.replace(run, config=config), greedy_drawing(config, split)
        problems, title = run.problems[split], f"{policy}, greedy answers to {split}"
        _write_candidates(view, directory, split, problems, params, drawing, run.key(stage), title)

    path = run.stage(stage, [stage_of(run, policy)], fill, everywhere=True)
    return read_candidates(path / "candidates.parquet")


def _write_candidates(
    run: SeedRun,
    directory: Path,
    split: str,
    problems: ProblemSet,
    params: ParamsLoader,
    drawing: Drawing,
    key: jax.Array,
    title: str,
    drawn: bool = False,
) -> None:
    """Samples and executes, each process its share of the problems; the first process writes the results of all.

    drawn: the samples are those of another engine, `run.drawn`.
    """
    # For tables every assertion has a control, which catches a program that cheats on one of them.
    control = "one" if split in (TRAIN, DEV) else "every"
    own = host_share(problems.asked)

    def used(waited_seconds: float, real_tokens: float) -> None:
        write_waits(directory, "host", waited_seconds)
        write_real_tokens(directory, real_tokens)

    with progress(f"seed {run.seed}: {title}", drawing.samples * len(own), "programs") as advance:
        sampled: Iterable[Candidate]
        if drawn:
            names = {problem.name for problem in own}
            sampled = [c for c in _drawn(run, params, split, problems.asked, drawing.samples) if c.problem in names]
        else:
            sampled = _sample(run, params(), own, drawing, key, used)
        executed = execute(
            whole(run.config.sandbox), own, sampled, advance, _source(problems), _judged(run, split), control
        )
    executed = [Candidate(**row) for row in allgather_rows([dataclasses.asdict(c) for c in executed])]
    place = {problem.name: i for i, problem in enumerate(problems.asked)}
    executed.sort(key=lambda c: (place[c.problem], c.sample))
    if is_first():
        write_candidates(directory / "candidates.parquet", executed)


def _drawn(
    run: SeedRun, params: ParamsLoader, split: str, problems: Sequence[Problem], samples: int
) -> list[Candidate]:
    """Another engine's samples. Log-probabilities that it does not give are computed under the policy."""
    given = list(drawn_candidates(run.drawn, problems, samples, run.tokenizer))
    without = [c for c in given if math.isnan(c.log_probability)]
    if not without:
        return given
    values, _ = score_candidates(run, {"decoder": params()}, run.generator.shape, LOG_PROBABILITY, split, without)
    means = iter(values / np.array([c.length for c in without]))
    return [
        dataclasses.replace(c, log_probability=float(next(means))) if math.isnan(c.log_probability) else c
        for c in given
    ]


def _source(problems: ProblemSet) -> Callable[[Problem, str], str]:
    return lambda problem, text: problems.source(problem.name, text)


def _judged(run: SeedRun, split: str) -> VerdictCache:
    """Verdicts of earlier stages on a split: policies from one model write many of the same programs."""
    earlier = sorted(run.path("candidates").glob(f"*-{split}/candidates.parquet"))
    return verdict_cache(itertools.chain.from_iterable(map(read_candidates, earlier)))


def _sample(
    run: SeedRun,
    params: Params,
    problems: Sequence[Problem],
    drawing: Drawing,
    key: jax.Array,
    used: Callable[[float, float], object] = lambda waited_seconds, real_tokens: None,
) -> Iterator[Candidate]:
    """Candidates of this process's problems, drawn on its own devices."""
    shape = run.generator.shape
    return generate(
        shape,
        drawing.sampling,
        copy_decoder_to_host(shape, params, run.mesh),
        problems,
        run.tokenizer,
        key=key,
        samples=drawing.samples,
        prompt_length=drawing.prompt_length,
        prompts_in_flight=drawing.prompts_in_flight,
        slots=drawing.slots,
        mesh=host_mesh_of(run.mesh),
        reads=drawing.reads,
        used=used,
    )


def scores(
    run: SeedRun, reranker: str, params: ParamsLoader, policy: str, split: str, candidates: Sequence[Candidate]
) -> np.ndarray:
    """A reranker's scores of a policy's candidates, float32 [candidates]."""

    def fill(directory: Path, config: ExperimentConfig) -> None:
        values, real = score_candidates(
            run,
            params(),
            run.reranker.shape,
            config.reranker.pooling,
            split,
            candidates,
            f"{policy}, scores of reranker {reranker} on {split}",
        )
        write_real_tokens(directory, real)
        if is_first():
            np.save(directory / "scores.npy", values)

    inputs = [f"rerankers/{reranker}", f"candidates/{policy}-{split}"]
    path = run.stage(f"scores/{reranker}/{policy}-{split}", inputs, fill, everywhere=True)
    return np.load(path / "scores.npy")


def score_candidates(
    run: SeedRun,
    params: Params,
    shape: ModelConfig,
    pooling: str,
    split: str,
    candidates: Sequence[Candidate],
    title: str = "",
) -> tuple[np.ndarray, float]:
    """A `Reranker`'s scores of candidates, float32 [candidates], and the fraction of computed tokens that were real.

    Each process scores its share of the problems. title: of the progress; none is shown without it.
    """
    prompt_of = {p.name: p.prompt for p in run.problems[split].asked}
    groups = itertools.groupby(candidates, lambda c: c.problem)
    by_problem = [(name, [c.completion for c in group]) for name, group in groups]
    scorer = host_reranker(shape, params, run.tokenizer, pooling, run.mesh)
    del params
    total = sum(len(set(texts)) for _, texts in host_share(by_problem))
    quiet = contextlib.nullcontext(lambda candidates: None)  # inside another progress: a terminal shows one at a time
    with progress(f"seed {run.seed}: {title}", total, "candidates") if title else quiet as advance:
        rows, real = score_shares(scorer, [(prompt_of[name], texts) for name, texts in by_problem], advance)
    return np.concatenate([*rows, np.zeros(0, np.float32)]), real


def fits_context(config: ExperimentConfig, run: SeedRun, sampled: Sequence[Candidate]) -> np.ndarray:
    """Which candidates fit a training row, bool: one cut at the length limit lacks room for an end-of-text token."""
    ids = encode_completions(run.tokenizer, [c.completion for c in sampled])
    return np.array([len(row) <= config.sampling.max_completion_length for row in ids], bool)


def first_reranker(
    run: SeedRun, name: str, trunk: Params, sampled: Sequence[Candidate], given: Sequence[Candidate]
) -> ParamsLoader:
    """Stage B: the reranker, trained from its SFT trunk on pairs of the start policy's samples and given solutions."""
    labelled = [*sampled, *given]

    def pairs(config: ExperimentConfig, member: Sequence[int]) -> list[Pair]:
        _ = config.iterations[name].pairs
        solutions = partition_by_verdict(itertools.compress(labelled, fits_context(config, run, labelled)))
        return sample_pairs(solutions, config.mining.pairs, [run.seed, 1, *member])

    def start(config: ExperimentConfig) -> Params:
        return trainers.start_reranker(config, run.reranker.shape, trunk, run.seed)

    inputs = [f"candidates/{start_policy(run)}-train", *(["candidates/given-train"] if given else [])]
    return _reranker(run, name, trunk, start, pairs, "reranker_training", [run.seed, 2], inputs)


def later_reranker(
    run: SeedRun,
    name: str,
    trunk: Params,
    old: Sequence[Candidate],
    new: Sequence[Candidate],
    new_scores: np.ndarray,
    inputs: Sequence[str],
) -> ParamsLoader:
    """Stages E and B: the previous iteration's reranker, trained further, on pairs with what this iteration adds.

    old: solutions that are in the data already. new, new_scores: samples of the previous iteration's policy, and their
    scores by its reranker. inputs: the stages that `new` and `new_scores` are from.
    """
    before, depth = run.config.iterations[name].after, run.config.depth_of(name)
    turn = [3] if depth == 2 else [3, depth]

    def pairs(config: ExperimentConfig, member: Sequence[int]) -> list[Pair]:
        fitting = fits_context(config, run, new)
        mining = whole(config.mining)
        return later_pairs(
            config.iterations[name].pairs,
            partition_by_verdict(itertools.compress(old, fits_context(config, run, old))),
            list(itertools.compress(new, fitting)),
            new_scores[fitting],
            count=mining.later_pairs,
            new_fraction=mining.new_fraction,
            hard_fraction=mining.hard_fraction,
            seed=[run.seed, *turn, *member],
        )

    def start(config: ExperimentConfig) -> Params:
        _ = config.iterations[name].after
        return checkpoint.restore(run.path(f"rerankers/{before}/checkpoint"), run.reranker_like(run.reranker))

    seed = [run.seed, 4] if depth == 2 else [run.seed, 4, depth]
    return _reranker(run, name, trunk, start, pairs, "retraining", seed, [f"rerankers/{before}", *inputs])


def _reranker(
    run: SeedRun,
    name: str,
    trunk: Params,
    start: Callable[[ExperimentConfig], Params],
    make_pairs: Callable[[ExperimentConfig, Sequence[int]], list[Pair]],
    training: str,
    seed: Sequence[int],
    inputs: Sequence[str],
) -> ParamsLoader:
    """The reranker `name`: trained, or if the config asks for several members, each of them trained, and their mean.

    make_pairs: given the config and a member's number, which is added to the seed: empty for the first.
    """
    base = trainers.lora_base(run.config, trunk)
    stages = [f"rerankers/{member}" for member in members(run, name)]

    def train(directory: Path, config: ExperimentConfig, stage: str, member: Sequence[int]) -> None:
        try:
            pairs = make_pairs(config, member)
        except ValueError as error:
            remedy = "raise config.candidates.train or config.sft.optimizer.steps, or choose easier problems"
            raise ConfigError(f"seed {run.seed}, reranker {name}: {error}; {remedy}") from error
        if is_first():
            write_pairs(directory / "pairs.jsonl", pairs)
        settings: TrainingConfig = whole(getattr(config, training))
        params = trainers.train_reranker(
            config,
            run.reranker.shape,
            settings,
            base,
            start(config),
            pairs,
            run.problems[TRAIN].asked,
            run.tokenizer,
            [*seed, *member],
            run.work(directory, stage, stage.replace("rerankers/", "reranker ")),
        )
        checkpoint.save(directory / "checkpoint", params)

    for number, stage in enumerate(stages):
        fill = functools.partial(train, stage=stage, member=[number] if number else [])
        run.stage(stage, [*_trunk_inputs(run), *inputs], fill, everywhere=True)

    def average(directory: Path, config: ExperimentConfig) -> None:
        _, like = config.reranker.members, run.reranker_like(run.reranker)
        total = checkpoint.restore(run.path(stages[0]) / "checkpoint", like)
        for stage in stages[1:]:
            total = jax.tree.map(jnp.add, total, checkpoint.restore(run.path(stage) / "checkpoint", like))
        checkpoint.save(directory / "checkpoint", jax.tree.map(lambda a: a / len(stages), total))

    if len(stages) > 1:
        run.stage(f"rerankers/{name}", stages, average, everywhere=True)
    return _reranker_loader(run, base, name)


def members(run: SeedRun, reranker: str) -> list[str]:
    """The names of the rerankers whose mean is an iteration's; of one without others, its own name."""
    count = run.config.reranker.members
    return [f"{reranker}-{number + 1}" for number in range(count)] if count > 1 else [reranker]


def member_loaders(run: SeedRun, reranker: str, trunk: Params) -> dict[str, ParamsLoader]:
    """The members of an iteration's reranker by name."""
    base = trainers.lora_base(run.config, trunk)
    return {name: _reranker_loader(run, base, name) for name in members(run, reranker)}


def _reranker_loader(run: SeedRun, base: Params | None, name: str) -> ParamsLoader:
    path, like = run.path(f"rerankers/{name}/checkpoint"), run.reranker_like(run.reranker)
    return lambda: attach_trunk(base, checkpoint.restore(path, like), run.config.lora)


def _trunk_inputs(run: SeedRun) -> list[str]:
    """The stages that the reranker's trunk is made from."""
    model = run.reranker
    return [f"models/{model.name}", *([_sft_stage(run, model)] if run.config.sft.enabled else [])]


def ppo_policy(
    run: SeedRun,
    name: str,
    sft: Params,
    reranker: ParamsLoader,
    rewards: Mapping[str, ParamsLoader],
    reference_scores: np.ndarray,
) -> ParamsLoader:
    """Stage C: PPO from the SFT model against the reranker, or its members.

    rewards: the R rerankers that the reward combines, by name. reference_scores: their scores of the SFT model's
    samples, [R, candidates], which scale the reward.
    """
    dev = run.problems[DEV]
    judged: VerdictCache = {}

    def fill(directory: Path, config: ExperimentConfig) -> None:
        drawing, limits = dev_drawing(config), whole(config.sandbox)
        reranked, pooling = config.early_stopping.criterion == RERANKED, config.reranker.pooling
        combined = tuple(load() for load in rewards.values())
        chooser = combined[0] if len(combined) == 1 else reranker() if reranked else {}

        def dev_rates(policy: Params) -> dict[str, float]:
            # The same key every time: policies are compared on common random numbers.
            own = host_share(dev.asked)
            sampled = _sample(run, policy, own, drawing, run.key("early stopping"))
            executed = execute(limits, own, sampled, source=_source(dev), judged=judged)
            judged.update(verdict_cache(executed))
            # A sandbox error says nothing about the policy: such candidates are left out.
            known = [dataclasses.asdict(c) for c in executed if c.verdict != Verdict.SANDBOX_ERROR]
            candidates = [Candidate(**row) for row in allgather_rows(known)]
            rates = {PASS_RATE: float(np.mean([c.passed for c in candidates] or [False]))}
            if reranked:
                candidates.sort(key=lambda c: (c.problem, c.sample))
                values, _ = score_candidates(run, chooser, run.reranker.shape, pooling, DEV, candidates)
                solved: list[float] = []
                for _, rows in itertools.groupby(zip(candidates, values, strict=True), lambda row: row[0].problem):
                    answers, of_problem = zip(*rows, strict=True)
                    solved += best_of(np.array([[c.passed for c in answers]]), np.array([of_problem])).tolist()
                rates[RERANKED] = float(np.mean(solved or [0.0]))
            return rates

        judged.update(_judged(run, DEV))
        trained = trainers.train_ppo(
            config,
            run.generator.shape,
            run.reranker.shape,
            sft,
            Reward(combined, *(jnp.asarray(f(1), jnp.float32) for f in (reference_scores.mean, reference_scores.std))),
            run.problems[TRAIN].asked,
            run.tokenizer,
            [run.seed, 5],
            run.key(f"ppo/{name}"),
            dev_rates,
            run.work(directory, f"policies/{name}", f"PPO {name}"),
        )
        checkpoint.save(directory / "checkpoint", trained)

    start = start_policy(run)
    inputs = [stage_of(run, start), *(s for r in rewards for s in (f"rerankers/{r}", f"scores/{r}/{start}-{TRAIN}"))]
    run.stage(f"policies/{name}", inputs, fill, everywhere=True)
    return policy_loader(run, name, sft)


def policy_loader(run: SeedRun, name: str, sft: Params) -> ParamsLoader:
    """The policy of a complete stage of PPO."""
    # A policy is saved without its value head: in the shapes of a reranker without its score head.
    like = run.reranker_like(run.generator)["decoder"]
    base, path = trainers.lora_base(run.config, sft), run.path(f"policies/{name}/checkpoint")
    return lambda: attach(base, checkpoint.restore(path, like), run.config.lora)
