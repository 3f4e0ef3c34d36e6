"""The paper's problems: to train on, decontaminated, and to evaluate on; and how an instruct model is asked them."""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rerankjax.loop.experiment import ConfigError
from rerankjax.loop.paper_config import PaperConfig
from rerankjax.problems.decontamination import decontaminate
from rerankjax.problems.jsonl import write_records
from rerankjax.problems.problem import Problem, read_problems, require_trainable, unique, write_problems
from rerankjax.prompts import instruct
from rerankjax.run.rundir import write_stage
from rerankjax.sandbox.multipl_e import REPAIRED, repair_csharp_lists

MBPP = "mbpp"  # the column that is no language
TRAIN, DEV, SHOTS = "train", "dev", "shots"
MBPP_SHOTS, MBPP_TEST = range(2, 5), range(11, 511)  # task ids, as DeepSeek-Coder's evaluation has them

Problems = Mapping[str, tuple[Problem, ...]]  # by split: TRAIN, DEV, SHOTS, each language, MBPP


def open_problems(p: PaperConfig, root: Path) -> Problems:
    """All problems by split; which training problems were removed, and why, is in problems/removed.jsonl.

    Raises:
        ConfigError: a source of problems cannot be read; a training problem is a benchmark's.
        ValueError: two training problems have one name.
    """
    v = p.evaluation
    splits = (TRAIN, DEV, SHOTS, MBPP, *v.languages)

    def fill(directory: Path) -> None:
        training = unique(("config.problems.sources", problem) for problem in _training(p))
        try:
            require_trainable(training, train_on_benchmarks=p.problems.train_on_benchmarks)
        except ValueError as error:
            raise ConfigError(f"config.problems.sources: {error}") from error
        found = {language: (v.python if language == "py" else v.multipl_e).load(language) for language in v.languages}
        if v.csharp_lists == REPAIRED and "cs" in found:
            found["cs"] = tuple(dataclasses.replace(c, tests=repair_csharp_lists(c.tests)) for c in found["cs"])
        shots = {f"MBPP/{i}" for i in MBPP_SHOTS}
        tested = {f"MBPP/{i}" for i in MBPP_TEST}
        found[MBPP] = tuple(m for m in v.mbpp.load("py") if m.name in tested)
        found[SHOTS] = tuple(m for m in v.mbpp_shots.load("py") if m.name in shots)
        if len(found[SHOTS]) < len(shots):
            raise ConfigError(f"config.evaluation.mbpp_shots: lacks some of {', '.join(sorted(shots))}")
        kept, removed = decontaminate(training, list(itertools.chain(*found.values())), n=p.problems.overlap)
        order = random.Random(p.seed).sample(kept, len(kept))
        found[DEV], found[TRAIN] = tuple(order[: p.problems.dev]), tuple(order[p.problems.dev :][: p.problems.train])
        for split in splits:
            first = v.problems or None if split not in (TRAIN, DEV, SHOTS) else None
            write_problems(directory / f"{split}.jsonl", found[split][:first])
        write_records(directory / "removed.jsonl", removed)
        print(f"{len(removed)} of {len(training)} training problems overlap evaluation problems and are removed")

    path = write_stage(root / "problems", fill)
    return {split: read_problems(path / f"{split}.jsonl") for split in splits}


def _training(p: PaperConfig) -> Iterator[Problem]:
    for source in p.problems.sources:
        # Problems of CodeContests can be posed in any language; others say theirs.
        languages = p.problems.languages if source.benchmark == "CodeContests" else ("py",)
        for turn, language in enumerate(languages):
            for problem in source.load(language)[turn :: len(languages)]:
                yield dataclasses.replace(problem, cases=problem.cases[: p.problems.cases])


def pose(problem: Problem, tokenizer: PreTrainedTokenizerBase, shots: Sequence[Problem]) -> Problem:
    """The problem with the chat up to the model's turn for its prompt, which an answer ends by itself."""
    asked = instruct.prompt(problem, tokenizer, shots if problem.standalone and not problem.cases else ())
    return dataclasses.replace(problem, prompt=asked, stop_tokens=())


def common_name(problem: str) -> str:
    """What all translations of a problem are called: HumanEval's own names and MultiPL-E's differ."""
    number = re.match(r"HumanEval[/_](\d+)", problem)
    return f"HumanEval/{number[1]}" if number else problem
