"""Benchmarks from files or from the Hugging Face hub, checked row by row."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rerankjax.problems import benchmarks
from rerankjax.problems.problem import LANGUAGES, Problem, read_problem, unique
from rerankjax.problems.tables import FILES, file_rows, hub_rows, is_hub_id

BENCHMARKS = ("MultiPL-E", "HumanEval", "MBPP", "CodeContests")
SYNTHETIC = "synthetic"  # a source that is no file: `problems.family`
HELD_OUT = "held_out"  # another: what is set aside of the training problems


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where problems come from: `SYNTHETIC`, `HELD_OUT`, or the arguments of `load_problems`, of which "" is left out.

    "{language}" in `source` and `config` becomes each of `languages`; problems of CodeContests are posed in these in
    turn.
    """

    source: str
    benchmark: str = ""
    config: str = ""
    split: str = ""
    revision: str = ""
    languages: tuple[str, ...] = ("py",)

    def __post_init__(self) -> None:
        languages = self.languages
        if not languages or len(set(languages)) < len(languages) or not set(languages) <= set(LANGUAGES):
            raise ValueError(f"languages = {languages}: give one or more of {', '.join(LANGUAGES)}, each once")
        if self.benchmark and self.benchmark not in BENCHMARKS:
            raise ValueError(
                f"benchmark = {self.benchmark!r}: use one of {', '.join(BENCHMARKS)}, or '' for rerankjax's format"
            )

    def load(self) -> tuple[Problem, ...]:
        """The problems of a file or dataset, in its order. Raises as `load_problems`."""
        turns = self.languages
        if self.benchmark != "CodeContests" and "{language}" not in self.source + self.config:
            turns = turns[:1]  # its rows say their languages
        all_problems: list[Problem] = []
        for turn, language in enumerate(turns):
            problems = load_problems(
                self.source.replace("{language}", language),
                self.benchmark,
                config=self.config.replace("{language}", language) or None,
                split=self.split or None,
                revision=self.revision or None,
                language=language,
            )
            all_problems += problems[turn :: len(turns)] if self.benchmark == "CodeContests" else problems
        return tuple(all_problems)


def load_problems(
    source: Path | str,
    benchmark: str = "",
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    language: str = "py",
) -> tuple[Problem, ...]:
    """The problems of a file or dataset, in its order.

    Args:
        source: a file that ends in .jsonl, .jsonl.gz or .parquet; or a dataset of the hub, as "nuprl/MultiPL-E".
        benchmark: whose rows these are, one of `BENCHMARKS`; "": those of `write_problems`.
        config: the dataset's, as "humaneval-cpp" or "mbpp-cpp"; of a file nothing.
        split: the dataset's. Of a file of CodeContests, the split that it is: "train" alone may be trained on. Of a
            file of MBPP, the split to take of it ("prompt", "test", "validation", "train"); without it all.
        revision: the dataset's commit, all 40 hexadecimal digits, so that next year's table is of the same problems.
        language: that CodeContests is to be solved in; the others say it themselves.

    Raises:
        ValueError: names file, row and field of what is not as it should be: a truncated line, a missing field, a wrong
            type, an unknown language, a name used twice; or says which argument is missing or wrong.
        FileNotFoundError: the file is not there.
        ConnectionError: the hub cannot be reached.
    """
    of_file = str(source).endswith(FILES)
    readers: dict[str, Callable[[str, dict[str, Any]], Problem | None]] = {
        "": read_problem,
        "MultiPL-E": benchmarks.multipl_e,
        "HumanEval": benchmarks.humaneval,
        "MBPP": functools.partial(benchmarks.mbpp, split=split if of_file else None),
        "CodeContests": functools.partial(benchmarks.code_contests, language=language, split=split),
    }
    if benchmark not in readers:
        raise ValueError(f"load_problems: benchmark is {benchmark!r}; it must be one of {', '.join(BENCHMARKS)}.")
    if language not in LANGUAGES:
        raise ValueError(f"load_problems: language is {language!r}; it must be one of {', '.join(LANGUAGES)}.")
    if of_file:
        if revision is not None or config is not None:
            raise ValueError(
                f"load_problems: {source} is a file; leave out config and revision, which are for hub datasets."
            )
        rows = file_rows(Path(source))
    elif is_hub_id(source):
        if split is None:
            raise ValueError(f'load_problems: {source} needs a split; give it, as in split="test".')
        if not re.fullmatch("[0-9a-f]{40}", revision or ""):
            raise ValueError(
                f"load_problems: revision of {source} is {revision!r}; give the commit's 40 hexadecimal digits, from "
                f"https://huggingface.co/datasets/{source}/commits/main: a branch or a tag can move, and then the "
                "problems change."
            )
        rows = hub_rows(str(source), config, split, revision)
    else:
        raise ValueError(
            f"load_problems: {source} is neither a file that ends in {', '.join(FILES)} nor a dataset of the hub "
            "(owner/name)."
        )
    read = readers[benchmark]
    problems = unique((where, problem) for where, row in rows if (problem := read(where, row)) is not None)
    if not problems:
        raise ValueError(f"{source}: no problems found; check the file and the split.")
    return problems
