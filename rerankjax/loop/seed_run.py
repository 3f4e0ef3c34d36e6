"""One seed of a run: its directory, problems and tokenizer, and what every stage needs of the experiment."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.loop import trainers
from rerankjax.loop.experiment import ConfigError, Experiment
from rerankjax.model.decoder import Params, init_decoder
from rerankjax.problems.corpus import make_corpus
from rerankjax.problems.family import make_family
from rerankjax.problems.problem import (
    Problem,
    Solution,
    read_problems,
    read_solutions,
    require_trainable,
    source,
    write_problems,
    write_solutions,
)
from rerankjax.prompts.tokenizer import encode_completions, load_tokenizer, train_tokenizer
from rerankjax.run import checkpoint
from rerankjax.run.rundir import recovery_of, write_stage


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """One seed's run: where its files are, and what every stage needs."""

    experiment: Experiment
    seed: int
    root: Path
    mesh: Mesh
    problems: dict[str, tuple[Problem, ...]]  # by split
    tokenizer: PreTrainedTokenizerBase
    source: Callable[[Problem, str], str] = source  # the program without its tests, of a problem and a completion

    def key(self, stage: str) -> jax.Array:
        """A key for one stage, from the seed and the stage's name: what runs before it changes nothing."""
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(stage.encode()))

    def work(self, directory: Path, stage: Path, title: str) -> trainers.Work:
        """Where the trainer of `stage` works, which fills `directory`."""
        return trainers.Work(directory, recovery_of(stage), self.mesh, f"seed {self.seed}: {title}")

    @property
    def decoder_like(self) -> Params:
        shapes = jax.eval_shape(functools.partial(init_decoder, self.experiment.model), jax.random.key(0))
        return checkpoint.abstract(shapes, self.mesh)

    @property
    def reranker_like(self) -> Params:
        shapes = jax.eval_shape(lambda p: trainers.start_reranker(self.experiment, p, 0), self.decoder_like)
        return checkpoint.abstract(shapes, self.mesh)


def open_seed(e: Experiment, seed: int, root: Path, mesh: Mesh) -> SeedRun:
    """The problems and the tokenizer, made or read.

    Raises:
        ConfigError: a prompt or a corpus solution is longer than the config allows.
        ValueError: a train problem is a benchmark's (see `require_trainable`).
    """

    def make_problems(directory: Path) -> None:
        sizes = e.problems
        family = make_family(seed, sizes.train, sizes.dev, sizes.test, languages=sizes.languages)
        for split_name in ("train", "dev", "test"):
            write_problems(directory / f"{split_name}.jsonl", getattr(family, split_name))
        corpus = make_corpus(
            seed,
            family,
            sizes.corpus,
            fault_probability=sizes.fault_probability,
            slip_probability=sizes.slip_probability,
        )
        write_solutions(directory / "corpus.jsonl", corpus)

    path = write_stage(root / "problems", make_problems)
    problems = {name: read_problems(path / f"{name}.jsonl") for name in ("train", "dev", "test")}
    require_trainable(problems["train"], train_on_benchmarks=e.problems.train_on_benchmarks)

    def make_tokenizer(directory: Path) -> None:
        completions = [s.completion for s in read_corpus(root)]
        tokenizer = train_tokenizer([p.prompt for p in problems["train"]] + completions, e.model.vocab_size)
        prompts = [p.prompt for of_split in problems.values() for p in of_split]
        for field, allowed, rows in (
            ("max_prompt_length", e.max_prompt_length, tokenizer(prompts)["input_ids"]),
            (
                "sampling.max_completion_length",
                e.sampling.max_completion_length,
                encode_completions(tokenizer, completions),
            ),
        ):
            longest = max(map(len, rows))
            if longest > allowed:
                raise ConfigError(
                    f"config.{field} = {allowed}: the longest text has {longest} tokens; raise it to that"
                )
        tokenizer.save_pretrained(directory)

    tokenizer = load_tokenizer(write_stage(root / "tokenizer", make_tokenizer))
    return SeedRun(e, seed, root, mesh, problems, tokenizer)


def read_corpus(root: Path) -> tuple[Solution, ...]:
    return read_solutions(root / "problems" / "corpus.jsonl")
