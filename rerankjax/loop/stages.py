"""The loop's stages for one seed. Each reads files of the run directory and writes its own, once (see `rundir`).

seedN/problems                            train, dev and test problems, and the SFT corpus
seedN/tokenizer
seedN/policies/NAME                       sft; ppo; ppo2-ARM: checkpoint and metrics
seedN/candidates/POLICY-SPLIT             sampled and executed
seedN/rerankers/NAME                      first; ARM: pairs, checkpoint and metrics
seedN/scores/RERANKER/POLICY-SPLIT        a reranker's score of each candidate
seedN/export                              the last reranker, to be used elsewhere (see `export`)

Where the config asks for adapters, the checkpoints of rerankers and of PPO's policies are those over the SFT model.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rerankjax.candidates.candidate import Candidate, read_candidates, write_candidates
from rerankjax.candidates.generate import generate
from rerankjax.loop import trainers
from rerankjax.loop.experiment import TrainingConfig
from rerankjax.loop.seed_run import SeedRun, read_corpus
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, in_compute_dtype
from rerankjax.model.lora import attach, attach_trunk
from rerankjax.pairs.mining import Pair, grow, pair_up, split, write_pairs
from rerankjax.policy.ppo import Reward
from rerankjax.problems.problem import Problem
from rerankjax.progress import progress
from rerankjax.prompts.tokenizer import encode_completions
from rerankjax.reranker.rerank import Reranker
from rerankjax.results.calibration import fit_platt
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.selection import choose_lambda
from rerankjax.run import checkpoint
from rerankjax.run.hosts import exchange, is_first, own_copy, own_mesh, share
from rerankjax.run.metrics import write_waits
from rerankjax.run.rundir import stage_seconds, write_stage
from rerankjax.verdicts.execution import Judged, by_program, execute

Saved = Callable[[], Params]  # reads a model where it is needed: between stages the devices hold the SFT model alone


def sft_policy(run: SeedRun) -> Params:
    """Stage A: the SFT model's parameters."""

    def fill(directory: Path) -> None:
        corpus = read_corpus(run.root)
        train = run.problems["train"]
        work = run.work(directory, run.root / "policies" / "sft", "SFT")
        params = trainers.train_sft(run.experiment, train, corpus, run.tokenizer, run.seed, work)
        checkpoint.save(directory / "checkpoint", params)

    path = write_stage(run.root / "policies" / "sft", fill, everywhere=True)
    return checkpoint.restore(path / "checkpoint", run.decoder_like)


def candidates(run: SeedRun, policy: str, params: Saved, split_name: str) -> list[Candidate]:
    """Stage D: the policy's samples of a split, executed; `config.candidates` says how many a problem.

    Any split but train and dev is one to test on.
    """
    e = run.experiment
    problems = run.problems[split_name]
    if split_name == "train" and e.candidates.train_problems:
        problems = problems[: e.candidates.train_problems]
    samples = getattr(e.candidates, split_name, e.candidates.test)

    def fill(directory: Path) -> None:
        key = run.key(f"candidates/{policy}-{split_name}")
        title = f"seed {run.seed}: {policy}, sample and execute {split_name}"
        own, waited = share(problems), functools.partial(write_waits, directory, "host")
        with progress(title, samples * len(own), "programs") as advance:
            sampled = _sample(run, params(), own, samples, key, waited)
            executed = execute(e.sandbox, own, sampled, advance, run.source, _judged(run, split_name))
        executed = [Candidate(**row) for row in exchange([dataclasses.asdict(c) for c in executed])]
        place = {problem.name: i for i, problem in enumerate(problems)}
        executed.sort(key=lambda c: (place[c.problem], c.sample))
        if is_first():
            write_candidates(directory / "candidates.parquet", executed)

    path = write_stage(run.root / "candidates" / f"{policy}-{split_name}", fill, everywhere=True)
    return read_candidates(path / "candidates.parquet")


def _judged(run: SeedRun, split_name: str) -> Judged:
    """What earlier stages executed of a split: policies that come of one model write many programs again."""
    earlier = sorted((run.root / "candidates").glob(f"*-{split_name}/candidates.parquet"))
    return by_program(itertools.chain.from_iterable(map(read_candidates, earlier)))


def _sample(
    run: SeedRun,
    params: Params,
    problems: Sequence[Problem],
    samples: int,
    key: jax.Array,
    waited: Callable[[float], object] = lambda seconds: None,
) -> Iterator[Candidate]:
    """Candidates of this process's problems, drawn on its own devices."""
    e = run.experiment
    return generate(
        e.model,
        e.sampling,
        own_copy(_light(run, params), run.mesh),
        problems,
        run.tokenizer,
        key=key,
        samples=samples,
        prompt_length=e.max_prompt_length,
        batch_size=e.candidates.batch_size,
        mesh=own_mesh(run.mesh),
        waited=waited,
    )


def _light(run: SeedRun, decoder: Params) -> Params:
    """A decoder of which every process makes a copy: in what it computes in, half of its float32."""
    return decoder if own_mesh(run.mesh) is run.mesh else in_compute_dtype(run.experiment.model, decoder)


def scores(
    run: SeedRun, reranker: str, params: Saved, policy: str, split_name: str, of: Sequence[Candidate]
) -> np.ndarray:
    """A reranker's scores of a policy's candidates, float32 [candidates]."""
    e = run.experiment
    prompt_of = {p.name: p.prompt for p in run.problems[split_name]}

    def fill(directory: Path) -> None:
        by_problem = [
            (name, [c.completion for c in found]) for name, found in itertools.groupby(of, lambda c: c.problem)
        ]
        model = params()
        copy, mesh = own_copy(model | {"decoder": _light(run, model["decoder"])}, run.mesh), own_mesh(run.mesh)
        del model
        scorer = Reranker(e.model, copy, run.tokenizer, e.reranker.pooling, mesh=mesh)
        own = share(by_problem)
        found = scorer.score_all((prompt_of[name], texts) for name, texts in own)
        rows = [{"problem": name, "scores": of.tolist()} for (name, _), of in zip(own, found, strict=True)]
        scores_of = {row["problem"]: row["scores"] for row in exchange(rows)}
        if is_first():
            every = [score for name, _ in by_problem for score in scores_of[name]]
            np.save(directory / "scores.npy", np.array(every, np.float32))

    path = write_stage(run.root / "scores" / reranker / f"{policy}-{split_name}", fill, everywhere=True)
    return np.load(path / "scores.npy")


def first_reranker(run: SeedRun, sft: Params, sampled: Sequence[Candidate]) -> Saved:
    """Stage B: the reranker, from the SFT model's trunk, on pairs of the SFT model's own samples."""
    e = run.experiment

    def pairs() -> list[Pair]:
        return pair_up(split(itertools.compress(sampled, fits(run, sampled))), e.mining.pairs, [run.seed, 1])

    def start() -> Params:
        return trainers.start_reranker(e, sft, run.seed)

    return _reranker(run, "first", sft, start, e.reranker_training, pairs, [run.seed, 2])


def grown_reranker(
    run: SeedRun,
    arm: str,
    sft: Params,
    sft_sampled: Sequence[Candidate],
    ppo_sampled: Sequence[Candidate],
    ppo_scores: np.ndarray,
) -> Saved:
    """Stages E and B: the first reranker trained on, with the dataset grown as `arm` says."""
    e = run.experiment

    def pairs() -> list[Pair]:
        new = fits(run, ppo_sampled)
        return grow(
            arm,
            split(itertools.compress(sft_sampled, fits(run, sft_sampled))),
            list(itertools.compress(ppo_sampled, new)),
            ppo_scores[new],
            count=e.mining.grown_pairs,
            new_share=e.mining.new_share,
            hard_share=e.mining.hard_share,
            seed=[run.seed, 3],
        )

    def first() -> Params:
        return checkpoint.restore(run.root / "rerankers" / "first" / "checkpoint", run.reranker_like)

    return _reranker(run, arm, sft, first, e.retraining, pairs, [run.seed, 4])


def fits(run: SeedRun, sampled: Sequence[Candidate]) -> np.ndarray:
    """Which candidates fit a training row, bool: one cut by the length limit has no room for an end-of-text token."""
    ids = encode_completions(run.tokenizer, [c.completion for c in sampled])
    return np.array([len(row) <= run.experiment.sampling.max_completion_length for row in ids])


def _reranker(
    run: SeedRun,
    name: str,
    sft: Params,
    start: Saved,
    training: TrainingConfig,
    make_pairs: Callable[[], list[Pair]],
    seed: Sequence[int],
) -> Saved:
    base = trainers.frozen(run.experiment, sft)

    def fill(directory: Path) -> None:
        pairs = make_pairs()
        if is_first():
            write_pairs(directory / "pairs.jsonl", pairs)
        params = trainers.train_reranker(
            run.experiment,
            training,
            base,
            start(),
            pairs,
            run.problems["train"],
            run.tokenizer,
            seed,
            run.work(directory, run.root / "rerankers" / name, f"reranker {name}"),
        )
        checkpoint.save(directory / "checkpoint", params)

    path = write_stage(run.root / "rerankers" / name, fill, everywhere=True)
    return lambda: attach_trunk(base, checkpoint.restore(path / "checkpoint", run.reranker_like), run.experiment.lora)


def ppo_policy(
    run: SeedRun,
    name: str,
    sft: Params,
    reranker: Saved,
    reference_scores: np.ndarray,
    reward_config: ModelConfig | None = None,
) -> Saved:
    """Stage C: PPO from the SFT model against a reranker, whose scores of the SFT model's samples set the scale.

    reward_config: the reranker's shape, where that is not the policy's.
    """
    e = run.experiment
    dev = run.problems["dev"]
    judged: Judged = {}

    def dev_pass_rate(params: Params) -> float:
        # The same key every time: policies are compared on common random numbers.
        key = run.key("early stopping")
        own = share(dev)
        sampled = _sample(run, params, own, e.early_stopping.samples, key)
        executed = execute(e.sandbox, own, sampled, source=run.source, judged=judged)
        judged.update(by_program(executed))
        return float(np.mean([row["passed"] for row in exchange([{"passed": c.passed} for c in executed])]))

    def fill(directory: Path) -> None:
        judged.update(_judged(run, "dev"))
        params = trainers.train_ppo(
            e,
            sft,
            Reward(reranker(), jnp.float32(reference_scores.mean()), jnp.float32(reference_scores.std())),
            run.problems["train"],
            run.tokenizer,
            [run.seed, 5],
            run.key(f"ppo/{name}"),
            dev_pass_rate,
            run.work(directory, run.root / "policies" / name, f"PPO {name}"),
            reward_config,
        )
        checkpoint.save(directory / "checkpoint", params)

    path = write_stage(run.root / "policies" / name, fill, everywhere=True)
    # A policy is saved without its value head: as a reranker without its own.
    return lambda: attach(
        trainers.frozen(e, sft), checkpoint.restore(path / "checkpoint", run.reranker_like["decoder"]), e.lora
    )


def evaluate(run: SeedRun, arm: str, policy: str, policy_params: Saved, reranker: str, params: Saved) -> Evaluation:
    """The policy's test samples, executed and scored; lambda and probabilities are fitted to the dev split."""
    e = run.experiment
    dev = candidates(run, policy, policy_params, "dev")
    dev_grid = _grid(dev, e.candidates.dev)
    dev_scores = scores(run, reranker, params, policy, "dev", dev).reshape(dev_grid["passed"].shape)
    test = candidates(run, policy, policy_params, "test")
    grid, n = _grid(test, e.candidates.test), e.candidates.test
    problems = tuple(c.problem for c in test[::n])
    language_of = {p.name: p.language for p in run.problems["test"]}
    return Evaluation(
        seed=run.seed,
        arm=arm,
        policy=policy,
        reranker=reranker,
        problems=problems,
        programs=tuple(tuple(c.completion for c in test[i : i + n]) for i in range(0, len(test), n)),
        passed=grid["passed"],
        scores=scores(run, reranker, params, policy, "test", test).reshape(grid["passed"].shape),
        log_probabilities=grid["log_probabilities"],
        lengths=grid["lengths"],
        lam=choose_lambda(dev_grid["passed"], dev_scores, dev_grid["log_probabilities"], e.lambdas),
        platt=fit_platt(dev_grid["passed"], dev_scores),
        languages=tuple(language_of[name] for name in problems),
        sampling_seconds=stage_seconds(run.root / "candidates" / f"{policy}-test"),
        scoring_seconds=stage_seconds(run.root / "scores" / reranker / f"{policy}-test"),
    )


def _grid(sampled: Sequence[Candidate], n: int) -> dict[str, np.ndarray]:
    """Candidates, which stand problem by problem, as arrays [problems, n]."""
    return {
        "passed": np.array([c.passed for c in sampled]).reshape(-1, n),
        "log_probabilities": np.array([c.log_probability for c in sampled]).reshape(-1, n),
        "lengths": np.array([c.length for c in sampled]).reshape(-1, n),
    }
