"""Samples that another engine drew (vLLM, SGLang, an API), from JSONL files, as candidates."""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from rerankjax.candidates.candidate import Candidate
from rerankjax.candidates.stop import truncate
from rerankjax.problems import jsonl
from rerankjax.problems.problem import Problem
from rerankjax.prompts.tokenizer import encode_completions


@dataclasses.dataclass(frozen=True)
class DrawnRow:
    """A row: its file and number, a problem's completions, and their log-probabilities, () if the row has none."""

    where: str
    completions: tuple[str, ...]
    log_probabilities: tuple[float, ...]


def read_drawn(paths: Iterable[str]) -> dict[str, DrawnRow]:
    """The rows of .jsonl or .jsonl.gz files by the name of their problem.

    A row is {"name", "completions": [...]} and optionally "log_probabilities": each completion's mean over its tokens,
    in nats, at temperature 1. Other fields are ignored.

    Raises:
        OSError: a file cannot be read.
        ValueError: a row is malformed, or a name comes twice; the message has file, row and field.
    """
    rows: dict[str, DrawnRow] = {}
    for path in paths:
        for where, record in jsonl.read_rows(path):
            name = jsonl.field(record, where, "name", str)
            completions = jsonl.texts(record, where, "completions")
            log_probabilities = record.get("log_probabilities") or []
            if not completions:
                raise ValueError(f"{where}: field 'completions' is empty; give the texts, or drop the row.")
            numbers = isinstance(log_probabilities, list) and all(
                type(value) in (int, float) and math.isfinite(value) for value in log_probabilities
            )
            if not numbers or (log_probabilities and len(log_probabilities) != len(completions)):
                raise ValueError(
                    f"{where}: field 'log_probabilities' must have one finite number per completion, "
                    f"{len(completions)} in all; correct or remove it."
                )
            if name in rows:
                raise ValueError(f"{where}: {rows[name].where} has samples of {name!r} too; put them into one row.")
            rows[name] = DrawnRow(where, completions, tuple(map(float, log_probabilities)))
    return rows


def drawn_candidates(
    rows: Mapping[str, DrawnRow], problems: Sequence[Problem], samples: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Candidate]:
    """The first `samples` completions of each problem, which `rows` has, cut at the problem's stop tokens.

    Without log-probabilities in its row a candidate has NaN. Its length is that of its text, tokenized.
    """
    for problem in problems:
        row = rows[problem.name]
        texts = [truncate(text, problem.stop_tokens) for text in row.completions[:samples]]
        lengths = map(len, encode_completions(tokenizer, texts))
        log_probabilities = row.log_probabilities[:samples] or (math.nan,) * len(texts)
        for sample, (text, length, value) in enumerate(zip(texts, lengths, log_probabilities, strict=True)):
            yield Candidate(problem.name, sample, text, value, length, finished=True)


def digest(rows: Mapping[str, DrawnRow], problems: Sequence[Problem]) -> str:
    """A digest of the problems' rows, without where they stand."""
    content = [(p.name, rows[p.name].completions, rows[p.name].log_probabilities) for p in problems]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
