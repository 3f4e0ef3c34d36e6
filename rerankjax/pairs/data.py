"""Labelled data from files or the hub, split by problem, and the pairs to learn from."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rerankjax.pairs.labelled import Labelled, Prompt, read_labelled
from rerankjax.problems.jsonl import read_objects
from rerankjax.problems.tables import FILES, file_rows, hub_rows, is_hub_id
from rerankjax.sandbox.multipl_e import RESULTS


@dataclasses.dataclass(frozen=True)
class DataSource:
    """A file (.jsonl, .jsonl.gz, .parquet), a MultiPL-E results file or a directory of them, or a dataset of the hub
    with its config, split and revision ("": the newest)."""

    source: str
    config: str = ""
    split: str = "train"
    revision: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source = '': name a file, a directory of results, or a dataset of the hub")


class TextPair(NamedTuple):
    """Two answers to one prompt, of which `chosen` is the better one."""

    prompt: Prompt
    chosen: str
    rejected: str


def read_data(sources: Sequence[DataSource]) -> list[Labelled]:
    """All rows of all sources, in their order.

    Raises:
        ValueError: one line that names file, row and field.
        OSError: a file is missing. ConnectionError: the hub cannot be reached.
    """
    rows = [read_labelled(where, record) for source in sources for where, record in _records(source)]
    if not rows:
        raise ValueError(f"{', '.join(source.source for source in sources)}: no rows found; give at least one row.")
    return rows


def _records(source: DataSource) -> Iterator[tuple[str, dict[str, Any]]]:
    path = Path(source.source)
    if path.is_dir():
        files = sorted(p for p in path.glob("**/*") if p.name.endswith(RESULTS) and p.is_file())
        if not files:
            raise ValueError(f"{path}: no file ends in {' or '.join(RESULTS)}; make results with `rerankjax execute`.")
        for file in files:
            yield from read_objects(file, by_row=False)
    elif path.name.endswith(RESULTS):
        yield from read_objects(path, by_row=False)
    elif path.name.endswith(FILES):
        yield from file_rows(path)
    elif is_hub_id(source.source):
        yield from hub_rows(source.source, source.config or None, source.split, source.revision or None)
    else:
        raise ValueError(
            f"{source.source}: is neither a file that ends in {', '.join((*FILES, *RESULTS))}, nor a directory, nor a "
            "dataset of the hub (owner/name)."
        )


class Splits(NamedTuple):
    """Rows for training, for early stopping, and for the reported figures. No prompt is in two splits."""

    train: list[Labelled]
    dev: list[Labelled]
    test: list[Labelled]


def split_by_problem(rows: Sequence[Labelled], dev_fraction: float, test_fraction: float, seed: int) -> Splits:
    """Sets aside the given fractions of the problems, where a problem is a prompt: all its rows go together.

    The choice depends on `seed` and the prompts alone, not on the rows' order. A fraction above 0 is at least one
    problem.

    Raises:
        ValueError: there are too few problems for all three.
    """
    digests = {row.prompt: _digest(row.prompt, seed) for row in rows}
    order = sorted(digests, key=digests.__getitem__)
    dev, test = (max(1, round(f * len(order))) if f else 0 for f in (dev_fraction, test_fraction))
    if len(order) <= dev + test:
        raise ValueError(
            f"{rows[0].where}: of {len(order)} different prompts, {dev} would be for dev and {test} for test, which "
            "leaves none to train on; give more problems, or separate dev and test data."
        )
    part = {prompt: "test" if i < test else "dev" if i < test + dev else "train" for i, prompt in enumerate(order)}
    return Splits(*([row for row in rows if part[row.prompt] == name] for name in Splits._fields))


def check_disjoint(splits: Splits) -> None:
    """Raises ValueError that names both rows where a prompt is in two of the splits."""
    first: dict[Prompt, tuple[str, str]] = {}
    for name, rows in zip(Splits._fields, splits, strict=True):
        for row in rows:
            other, where = first.setdefault(row.prompt, (name, row.where))
            if other != name:
                raise ValueError(
                    f"{row.where}: field 'prompt' is in the {name} data and, at {where}, in the {other} data; a "
                    "prompt may be in one of them only: remove one of the two rows."
                )


def make_pairs(rows: Sequence[Labelled], per_problem: int, seed: int) -> list[TextPair]:
    """Pairs of each right candidate with each wrong one of its row; equal texts count once.

    Executed samples of one prompt count as one row. If a row has more than `per_problem` pairs, that many are drawn, by
    `seed` and the prompt.

    Raises:
        ValueError: no row has both right and wrong candidates.
    """
    merged: dict[tuple[Prompt, int], tuple[dict[str, None], dict[str, None]]] = {}
    for number, row in enumerate(rows):
        right, wrong = merged.setdefault((row.prompt, -1 if row.executed else number), ({}, {}))
        for text, passed in zip(row.candidates, row.passed, strict=True):
            (right if passed else wrong)[text] = None
    pairs = []
    for (prompt, _), (right, wrong) in merged.items():
        # A text with both labels, for example from a flaky test, is no evidence.
        both = right.keys() & wrong.keys()
        of_prompt = [TextPair(prompt, a, b) for a in right if a not in both for b in wrong if b not in both]
        if len(of_prompt) > per_problem:
            rng = np.random.default_rng(int(_digest(prompt, seed)[:16], 16))
            of_prompt = [of_prompt[i] for i in sorted(rng.choice(len(of_prompt), per_problem, replace=False))]
        pairs += of_prompt
    if not pairs:
        passing = sum(not wrong for _, wrong in merged.values())
        raise ValueError(
            f"{rows[0].where}: none of {len(merged)} problems has both a passing and a failing candidate ({passing} "
            "have only passing ones); sample more candidates per problem, or give easier or harder problems."
        )
    return pairs


def data_digest(rows: Sequence[Labelled]) -> str:
    """Sixteen hexadecimal digits that identify the rows' content, whatever their source."""
    digest = hashlib.sha256()
    for row in rows:
        content = [row.prompt, row.candidates, row.passed, row.executed, row.subset, row.greedy]
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()[:16]


def _digest(prompt: Prompt, seed: int) -> str:
    return hashlib.sha256(json.dumps([seed, prompt]).encode()).hexdigest()
