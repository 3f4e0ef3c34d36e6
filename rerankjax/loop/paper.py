"""The rows of the paper's table, each from checkpoints to cells. Rows of one run directory share what they have alike.

problems                                   training problems after decontamination, evaluation problems
6.7b/candidates/{greedy,sampled}-py        the instruct checkpoint's answers, executed
6.7b/policies/sft                          stage A, where the config asks for it
6.7b/candidates/{sft,given}-train          its samples of the training problems; the solutions that came with them
6.7b+6.7b/rerankers, policies, candidates, scores      stages B to E: see `stages`
cells/ROW/LANGUAGE.json                    the table's cells; mbpp/ROW/py.json those of MBPP

Problems are posed as DeepSeek-Coder's evaluation does (`prompts.instruct`): what is sampled, scored and trained on is
the whole chat up to the model's turn, and its answer. Pairs are made of the model's samples and of given solutions;
execution labels both.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rerankjax import sandbox
from rerankjax.candidates.candidate import Candidate, read_candidates, write_candidates
from rerankjax.loop import stages, trainers
from rerankjax.loop.experiment import ConfigError
from rerankjax.loop.paper_config import PaperConfig, resolve_row, shared
from rerankjax.loop.paper_problems import DEV, MBPP, SHOTS, TRAIN, Problems, common_name, open_problems, pose
from rerankjax.loop.seed_run import SeedRun
from rerankjax.loop.stages import Saved
from rerankjax.model import weights
from rerankjax.model.decoder import Params
from rerankjax.model.lora import attach, merge
from rerankjax.model.pretrained import find_folder
from rerankjax.model.sharding import make_mesh, sharding_of
from rerankjax.problems.problem import Problem, Solution
from rerankjax.prompts import instruct
from rerankjax.prompts.tokenizer import encode_completions, load_tokenizer
from rerankjax.results.cells import Cell, load, path_of, save
from rerankjax.run import bucket, checkpoint
from rerankjax.run.hosts import agree, is_first, wait_for_all
from rerankjax.run.recovery import preemptible
from rerankjax.run.rundir import durable, open_run, stage_seconds, write_stage
from rerankjax.sandbox import toolchains
from rerankjax.verdicts.execution import execute


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint's parameters, and where its stages are."""

    run: SeedRun
    params: Params


def open_model(p: PaperConfig, size: str, root: Path, mesh: Mesh, problems: Problems) -> Model:
    """The checkpoint of a size, and its problems as chats. Training problems longer than the config allows are left
    out.

    Raises:
        ConfigError: the checkpoint cannot be loaded; an evaluation problem is too long; too few training problems are
            left.
        ValueError: the tokenizer has no chat template.
    """
    source = p.model(size)
    try:
        folder = find_folder(source.checkpoint, source.revision or None)
        tokenizer = load_tokenizer(folder)
        place = functools.partial(sharding_of, mesh=mesh)
        config, params = weights.load(folder, sharding=place, dtype=jnp.dtype(p.dtype))
    except (OSError, ValueError) as error:  # the hub's client's are among them
        raise ConfigError(
            f"config.models: {size} cannot be loaded from {source.checkpoint!r}: {error}; give a folder with an "
            "instruct checkpoint, or a hub id where the hub can be reached"
        ) from error
    e = p.experiment(config)
    original = {(o.language, o.name): o for of_split in problems.values() for o in of_split}

    def program(posed: Problem, text: str) -> str:
        return instruct.source(original[posed.language, posed.name], text)

    posed = {}
    for split in problems.keys() - {SHOTS}:
        chats = [pose(o, tokenizer, problems[SHOTS]) for o in problems[split]]
        lengths = [len(ids) for ids in tokenizer([c.prompt for c in chats], add_special_tokens=False)["input_ids"]]
        if split in (TRAIN, DEV):
            posed[split] = tuple(c for c, n in zip(chats, lengths, strict=True) if n <= p.max_prompt_length)
            if len(posed[split]) < len(chats):
                print(f"{size}: {len(chats) - len(posed[split])} of {len(chats)} {split} problems are too long")
        elif (longest := max(lengths)) > (allowed := p.evaluation.max_prompt_length):
            raise ConfigError(
                f"config.evaluation.max_prompt_length = {allowed}: {split} has a prompt of {longest} tokens; raise it "
                "to that"
            )
        else:
            posed[split] = tuple(chats)
    for split, needed in ((TRAIN, e.ppo.batch_size), (DEV, 1)):
        if len(posed[split]) < needed:
            raise ConfigError(
                f"config.problems: {len(posed[split])} {split} problems are left, {needed} are needed; give more, or "
                "raise max_prompt_length"
            )
    return Model(SeedRun(e, p.seed, root / size, mesh, posed, tokenizer, program), params)


def given_solutions(run: SeedRun) -> list[Candidate]:
    """The solutions that came with training problems, as answers, executed."""
    posed = [problem for problem in run.problems[TRAIN] if problem.solution]
    if not posed:
        return []

    def fill(directory: Path) -> None:
        answers = [instruct.answer(problem, problem.solution or "") for problem in posed]
        lengths = map(len, encode_completions(run.tokenizer, answers))
        rows = zip(posed, answers, lengths, strict=True)
        candidates = [Candidate(problem.name, 0, text, 0.0, length, True) for problem, text, length in rows]
        executed = execute(run.experiment.sandbox, posed, candidates, source=run.source)
        write_candidates(directory / "candidates.parquet", executed)

    return read_candidates(write_stage(run.root / "candidates" / "given-train", fill) / "candidates.parquet")


def sft_model(p: PaperConfig, model: Model) -> Params:
    """Stage A: the instruct checkpoint, trained on the given solutions if the config says so.

    Raises:
        ConfigError: there is no given solution that passes.
    """
    run, e = model.run, model.run.experiment
    if not p.sft_on_solutions:
        return model.params
    given = given_solutions(run)

    def fill(directory: Path) -> None:
        right = [c for c, fits in zip(given, stages.fits(run, given), strict=True) if fits and c.passed]
        if not right:
            raise ConfigError(
                f"config.sft_on_solutions = True: none of {len(given)} given solutions passes and is no longer than "
                "sampling.max_completion_length; give problems with solutions, or write False"
            )
        corpus = [Solution(c.problem, c.completion, True) for c in right]
        work = run.work(directory, run.root / "policies" / "sft", f"SFT {run.root.name}")
        trained = trainers.train_sft(e, run.problems[TRAIN], corpus, run.tokenizer, run.seed, work, model.params)
        checkpoint.save(directory / "checkpoint", trained)

    path = write_stage(run.root / "policies" / "sft", fill, everywhere=True)
    trained = checkpoint.restore(path / "checkpoint", run.reranker_like["decoder"])
    return merge(attach(trainers.frozen(e, model.params), trained, e.lora))


def run_row(config: ConfigDict, workdir: str, *, mbpp: bool = False) -> list[Cell]:
    """The cells of the table's row in every language, or on MBPP: read, or made from where `workdir` had come.

    Of several processes (`hosts.connect`) the first returns them, the others none.

    Raises:
        Preempted: SIGTERM came. What was at work is saved; start the run again.
        ConfigError: the config cannot run.
        SandboxError: programs cannot be contained here, or a language's toolchain is missing.
        RunDirectoryError: `workdir` is in use, or holds rows of another config.
    """
    p = resolve_row(config, jax.device_count())
    sandbox.check()
    for language in {*p.evaluation.languages, *p.problems.languages}:
        toolchains.check(language)
    columns = (MBPP,) if mbpp else p.evaluation.languages
    with preemptible(), open_run(workdir, shared(p), primary=is_first()) as root:
        jax.config.update("jax_compilation_cache_dir", str(durable(root.absolute() / "compiled")))
        directory = root / ("mbpp" if mbpp else "cells")
        paths = [path_of(directory, p.row.name, "py" if mbpp else column) for column in columns]
        if not agree(all(path.exists() for path in paths)):
            for cell in row_cells(p, root, make_mesh(p.mesh), columns):
                if is_first():
                    bucket.put_file(save(cell, directory))
        wait_for_all(f"row {p.row.name}")
        return [load(path) for path in paths] if is_first() else []


def row_cells(p: PaperConfig, root: Path, mesh: Mesh, columns: Sequence[str]) -> Iterator[Cell]:
    """The row's cells, as they are known: one for each of `columns`, languages or MBPP."""
    problems = open_problems(p, root)
    generator = open_model(p, p.row.generator, root, mesh, problems)
    if p.row.decoding == "reranked":
        yield from _reranked(p, root, mesh, problems, generator, columns)
        return
    run = dataclasses.replace(generator.run, experiment=p.answering(generator.run.experiment))
    for column in columns:
        sampled = stages.candidates(run, p.row.decoding, lambda: generator.params, column)
        seconds = stage_seconds(run.root / "candidates" / f"{p.row.decoding}-{column}")
        yield cell_of(p, column, sampled, None, seconds)


def _reranked(
    p: PaperConfig, root: Path, mesh: Mesh, problems: Problems, generator: Model, columns: Sequence[str]
) -> Iterator[Cell]:
    row, v = p.row, p.evaluation
    same = row.reranker == row.generator
    judge = generator if same else open_model(p, row.reranker, root, mesh, problems)
    _check_same_tokens(p, generator.run, judge.run)
    sft = sft_model(p, generator)
    trunk = sft if same else sft_model(p, judge)
    pair = root / f"{row.generator}+{row.reranker}"
    policies = dataclasses.replace(generator.run, root=pair)
    rerankers = dataclasses.replace(judge.run, root=pair)

    sampled = stages.candidates(generator.run, "sft", lambda: sft, TRAIN)
    labelled = [*sampled, *given_solutions(generator.run)]
    name, reranker = "first", stages.first_reranker(rerankers, trunk, labelled)
    source, policy, params = generator.run, "sft", lambda: sft

    def align(policy: str, name: str, reranker: Saved) -> Saved:
        scores = stages.scores(rerankers, name, reranker, "sft", TRAIN, sampled)
        return stages.ppo_policy(policies, policy, sft, reranker, scores, judge.run.experiment.model)

    if row.second_iteration or v.answers == "policy":
        source, policy = policies, "ppo"
        params = align(policy, name, reranker)
    if row.second_iteration:
        found = stages.candidates(policies, "ppo", params, TRAIN)
        scores = stages.scores(rerankers, "first", reranker, "ppo", TRAIN, found)
        name = row.second_iteration
        reranker = stages.grown_reranker(rerankers, name, trunk, labelled, found, scores)
        if v.answers == "policy":
            policy = f"ppo2-{name}"
            params = align(policy, name, reranker)
    if v.answers == "sft":
        source, policy, params = generator.run, "sft", lambda: sft

    answering = dataclasses.replace(source, experiment=p.answering(source.experiment))
    for column in columns:
        answers = stages.candidates(answering, policy, params, column)
        scores = stages.scores(rerankers, name, reranker, policy, column, answers)
        where = source.root / "candidates" / f"{policy}-{column}", pair / "scores" / name / f"{policy}-{column}"
        yield cell_of(p, column, answers, scores, sum(map(stage_seconds, where)))


def _check_same_tokens(p: PaperConfig, generator: SeedRun, reranker: SeedRun) -> None:
    one, other = generator.tokenizer, reranker.tokenizer
    if one.get_vocab() != other.get_vocab() or one.chat_template != other.chat_template:
        raise ConfigError(
            f"config.row: {p.row.generator} and {p.row.reranker} have different tokenizers or chat templates, and PPO "
            "hands the reranker the generator's tokens: take checkpoints of one family"
        )


def cell_of(
    p: PaperConfig, column: str, answers: Sequence[Candidate], scores: np.ndarray | None, seconds: float
) -> Cell:
    """The cell of executed answers, those of a problem together: of what `scores` are highest for, or without them of
    one taken at random."""
    solved: dict[str, float] = {}
    values = [None] * len(answers) if scores is None else scores.tolist()
    for problem, group in itertools.groupby(zip(answers, values, strict=True), key=lambda pair: pair[0].problem):
        found = list(group)
        best = found if scores is None else [pair for pair in found if pair[1] == max(score for _, score in found)]
        solved[common_name(problem)] = float(np.mean([candidate.passed for candidate, _ in best]))
    n = len(answers) // len(solved)
    v, models = p.evaluation, [p.model(size) for size in (p.row.generator, p.row.reranker) if size]
    how = {"greedy": "greedy", "sampled": f"mean of {n} samples"}.get(p.row.decoding, f"{v.answers}'s samples")
    of = v.mbpp if column == MBPP else v.python if column == "py" else v.multipl_e
    names = " + ".join("/".join(model.checkpoint.split("/")[-2:]) for model in models)
    return Cell(
        row=p.row.name,
        language="py" if column == MBPP else column,
        model=f"{names}; {how}; {'/'.join(of.source.split('/')[-2:])}",
        n=n if p.row.reranker else 1,
        solved=solved,
        seconds=seconds,
        tokens=sum(candidate.length for candidate in answers),
    )
