"""Benchmarks from files or from the Hugging Face hub, checked row by row."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rerankjax.problems import benchmarks, jsonl
from rerankjax.problems.problem import LANGUAGES, Problem, read_problem, unique

BENCHMARKS = ("MultiPL-E", "HumanEval", "MBPP", "CodeContests")
FILES = (".jsonl", ".jsonl.gz", ".parquet")
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
            raise ValueError(f"benchmark = {self.benchmark!r}: use one of {', '.join(BENCHMARKS)}, or '' for our own")

    def load(self) -> tuple[Problem, ...]:
        """The problems of a file or dataset, in its order. Raises as `load_problems`."""
        turns = self.languages
        if self.benchmark != "CodeContests" and "{language}" not in self.source + self.config:
            turns = turns[:1]  # its rows say their languages
        found: list[Problem] = []
        for turn, language in enumerate(turns):
            problems = load_problems(
                self.source.replace("{language}", language),
                self.benchmark,
                config=self.config.replace("{language}", language) or None,
                split=self.split or None,
                revision=self.revision or None,
                language=language,
            )
            found += problems[turn :: len(turns)] if self.benchmark == "CodeContests" else problems
        return tuple(found)


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
            raise ValueError(f"load_problems: {source} is a file; leave out config and revision, which datasets have.")
        rows = _parquet_rows(Path(source)) if str(source).endswith(".parquet") else jsonl.read_rows(source)
    elif isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) and not Path(source).exists():
        rows = _hub_rows(source, config, split, revision)
    else:
        raise ValueError(
            f"load_problems: {source} is neither a file that ends in {', '.join(FILES)} nor a dataset of the hub "
            "(owner/name)."
        )
    read = readers[benchmark]
    problems = unique((where, problem) for where, row in rows if (problem := read(where, row)) is not None)
    if not problems:
        raise ValueError(f"{source}: has no problem.")
    return problems


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow  # a second to import
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not Parquet ({error}); was the file cut off? Write it again.") from error


def _hub_rows(
    name: str, config: str | None, split: str | None, revision: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    if split is None:
        raise ValueError(f'load_problems: {name} needs its split; name it, as in split="test".')
    if not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise ValueError(
            f"load_problems: revision of {name} is {revision!r}; name the commit by its 40 hexadecimal digits, from "
            f"https://huggingface.co/datasets/{name}/commits/main: branches and tags move, and tables with them."
        )
    import datasets  # three seconds to import

    try:
        dataset = datasets.load_dataset(name, config, split=split, revision=revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"{name}: the hub cannot be reached ({error}). Load it where it can, once, for it stays in the cache; or "
            f"give load_problems the dataset's own file, {' or '.join(FILES)}."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}, config {config!r}, split {split!r} at {revision}: {error}") from error
    at = ", ".join(part for part in (f"{name}@{str(revision)[:7]}", config, split) if part)
    for number, row in enumerate(dataset, start=1):
        yield f"{at}, row {number}", row
