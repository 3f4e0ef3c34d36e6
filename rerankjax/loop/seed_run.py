"""One seed of a run: its directory, problems, models and tokenizer, which every stage needs."""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.candidates.drawn import DrawnRow, read_drawn
from rerankjax.loop import models, problem_sets, trainers
from rerankjax.loop.config import ConfigError, ExperimentConfig, sampling_of
from rerankjax.loop.models import GENERATOR, RERANKER, Model
from rerankjax.loop.problem_sets import DEV, TRAIN, Problems
from rerankjax.loop.programs import drawing_of
from rerankjax.model.decoder import Params
from rerankjax.problems.problem import Problem, Solution
from rerankjax.prompts.ask import ProblemSet, ask
from rerankjax.prompts.tokenizer import encode_completions
from rerankjax.run import checkpoint
from rerankjax.run.rundir import recovery_of, write_stage
from rerankjax.sandbox import toolchains


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """One seed's run. problems: by split, with their prompts. reranker: the generator unless it is a separate model."""

    config: ExperimentConfig
    seed: int
    root: Path  # of the run
    mesh: Mesh
    problems: Mapping[str, ProblemSet]
    corpus: tuple[Solution, ...]  # of the synthetic family
    tokenizer: PreTrainedTokenizerBase
    generator: Model
    reranker: Model
    drawn: Mapping[str, DrawnRow]  # samples that another engine drew, by problem

    def key(self, stage: str) -> jax.Array:
        """A key for one stage, from the seed and the stage's name: earlier stages do not change it."""
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(stage.encode()))

    def path(self, stage: str) -> Path:
        return self.root / f"seed{self.seed}" / stage

    def stage(
        self,
        name: str,
        inputs: Iterable[str],
        fill: Callable[[Path, ExperimentConfig], object],
        *,
        everywhere: bool = False,
        facts: Mapping[str, str] | None = None,
    ) -> Path:
        """`write_stage` in this seed's directory, with the problems and the tokenizer among the stage's inputs."""
        of_seed = dict.fromkeys(("problems", f"models/{GENERATOR}", *inputs))
        names = [f"seed{self.seed}/{stage}" for stage in of_seed]
        path = f"seed{self.seed}/{name}"
        return write_stage(self.root, path, self.config, names, fill, facts=facts, everywhere=everywhere)

    def work(self, directory: Path, stage: str, title: str) -> trainers.StageIO:
        """What the trainer of `stage` needs to fill `directory`."""
        return trainers.StageIO(directory, recovery_of(self.path(stage)), self.mesh, f"seed {self.seed}: {title}")

    def samples(self, split: str) -> int:
        """The number of samples per problem of a split."""
        return drawing_of(self.config, split).samples

    def sampled_problems(self, split: str) -> ProblemSet:
        """The problems of a split that are sampled."""
        return sampled_problems(self.config, split, self.problems[split])

    @property
    def own_reranker(self) -> bool:
        """Whether the reranker is a separate model from the generator."""
        return self.reranker.name == RERANKER

    def decoder_like(self, model: Model) -> Params:
        """A model's decoder, before or after SFT, as shapes on the mesh."""
        return model.abstract(self.mesh)

    def reranker_like(self, model: Model) -> Params:
        """A reranker trained from a model, as shapes on the mesh; its "decoder" has the shapes of a trained policy."""
        like = jax.eval_shape(
            lambda p: trainers.start_reranker(self.config, model.shape, p, 0), self.decoder_like(model)
        )
        return checkpoint.abstract(like, self.mesh)


def open_seed(config: ExperimentConfig, seed: int, root: Path, mesh: Mesh) -> SeedRun:
    """The problems, the models and the tokenizer of a seed, made or read; the problems come before any model.

    Raises:
        ConfigError: problems, drawn samples or a checkpoint cannot be read; a prompt or a corpus solution is longer
            than the config allows; too few problems are left, or too few of their samples are drawn.
        SandboxError: the toolchain of a problem's language is missing.
    """
    problems = problem_sets.open_problems(config, seed, root)
    for language in sorted({problem.language for split in problems.splits.values() for problem in split}):
        if config.sandbox.engine == "local":
            toolchains.check(language)
    texts = [p.prompt for p in problems.splits[TRAIN]]
    texts += [s.completion for s in problems.corpus]
    texts += [p.solution for p in problems.splits[TRAIN] if p.solution]
    generator = models.open_model(config, GENERATOR, root, seed, texts)
    tokenizer = models.read_tokenizer(root, seed)
    reranker = generator
    if config.reranker.given:
        reranker = models.open_model(config, RERANKER, root, seed, ())
        models.check_same_tokens(config, tokenizer, reranker)
    asked = {name: _asked(config, name, problems, tokenizer) for name in problems.splits}
    _check_sizes(config, asked)
    corpus = tuple(
        dataclasses.replace(s, completion=asked[TRAIN].answer(s.problem, s.completion))
        for s in problems.corpus
        if s.problem in asked[TRAIN]
    )
    _check_corpus(config, corpus, tokenizer)
    drawn = _read_drawn(config, asked)
    return SeedRun(config, seed, root, mesh, asked, corpus, tokenizer, generator, reranker, drawn)


def sampled_problems(config: ExperimentConfig, split: str, problems: ProblemSet) -> ProblemSet:
    """Of the training problems the first `candidates.train_problems`; of other splits all."""
    return problems.first(config.candidates.train_problems) if split == TRAIN else problems


def _read_drawn(config: ExperimentConfig, asked: Mapping[str, ProblemSet]) -> dict[str, DrawnRow]:
    """The samples of `candidates.drawn`; each split has enough of them for all its sampled problems, or none."""
    files = config.candidates.drawn
    try:
        rows = read_drawn(files)
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.candidates.drawn: {error}") from error
    taken = 0
    for split, problems in asked.items():
        names = [problem.name for problem in sampled_problems(config, split, problems).asked]
        missing, wanted = [name for name in names if name not in rows], drawing_of(config, split).samples
        taken += len(names) - len(missing)
        if missing and len(missing) < len(names):
            remedy = "; give their samples too" + (", or lower candidates.train_problems" if split == TRAIN else "")
            raise ConfigError(
                f"config.candidates.drawn = {files}: {len(missing)} of {len(names)} {split} problems have no row, such "
                f"as {missing[0]}{remedy}"
            )
        for name in names if not missing else ():
            if (count := len(rows[name].completions)) < wanted:
                field = f"candidates.{split}" if split in (TRAIN, DEV) else f"evaluation.{split}.samples"
                raise ConfigError(f"config.{field} = {wanted}: {rows[name].where} has {count} completions; lower it")
    if rows and not taken:
        raise ConfigError(
            f"config.candidates.drawn = {files}: none of its problems, such as {next(iter(rows))!r}, is one of this "
            f"run's, such as {asked[TRAIN].asked[0].name!r}; `name` must be the problem's"
        )
    return rows


def _asked(config: ExperimentConfig, split: str, problems: Problems, tokenizer: PreTrainedTokenizerBase) -> ProblemSet:
    """A split with its prompts. Training and dev problems that are too long are left out; other ones are an error."""
    training = split in (TRAIN, DEV)
    prompts = config.prompts if training else config.evaluation[split].prompts or config.prompts
    try:
        asked = ask(problems.splits[split], prompts.style, tokenizer, problems.shots[split])
    except ValueError as error:
        raise ConfigError(f"config.prompts, for {split}: {error}") from error
    if not asked.asked:
        return asked
    longest = config.max_prompt_length if training else sampling_of(config, split)[1]
    lengths = [len(ids) for ids in tokenizer([p.prompt for p in asked.asked], add_special_tokens=False)["input_ids"]]
    fits = [length <= longest for length in lengths]
    if all(fits):
        return asked
    too_long: Problem = max(zip(lengths, asked.asked, strict=True), key=lambda pair: pair[0])[1]
    field = "max_prompt_length" if training else f"evaluation.{split}.max_prompt_length"
    message = f"config.{field} = {longest}: the prompt of {too_long.name} has {max(lengths)} tokens"
    if not training:
        raise ConfigError(f"{message}; raise the limit to {max(lengths)}, or shorten the problem")
    print(f"{message}; {fits.count(False)} of {len(fits)} {split} problems are left out")
    return asked.where(fits)


def _check_sizes(config: ExperimentConfig, asked: Mapping[str, ProblemSet]) -> None:
    training = config.sft.enabled or config.iterations
    needed = {TRAIN: (config.ppo.batch_size if config.iterations else 1) if training else 0}
    needed |= {DEV: 1 if config.iterations else 0} | dict.fromkeys(config.evaluation, 1)
    for split, least in needed.items():
        if len(asked[split].asked) < least:
            field = f"problems.{split}" if split in (TRAIN, DEV) else f"evaluation.{split}"
            raise ConfigError(
                f"config.{field}: {len(asked[split].asked)} problems are left, {least} are needed"
                + (" (ppo.batch_size: an iteration takes each prompt once)" if least > 1 else "")
                + "; give more problems, or raise max_prompt_length"
            )
    sampled, here = config.candidates.train_problems, len(asked[TRAIN].asked)
    if sampled > here:
        raise ConfigError(
            f"config.candidates.train_problems = {sampled}: there are {here} training problems; lower it, or use 0"
        )


def _check_corpus(config: ExperimentConfig, corpus: tuple[Solution, ...], tokenizer: PreTrainedTokenizerBase) -> None:
    allowed = config.sampling.max_completion_length
    longest = max(map(len, encode_completions(tokenizer, [s.completion for s in corpus])), default=0)
    if longest > allowed:
        raise ConfigError(
            f"config.sampling.max_completion_length = {allowed}: the longest solution of the corpus has {longest} "
            f"tokens; use {longest} or more"
        )
