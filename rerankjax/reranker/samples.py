"""The samples to rank: from JSONL files, and from MultiPL-E's completions files."""

import dataclasses
from pathlib import Path
from typing import Any

from rerankjax.problems.jsonl import field, read_objects, texts
from rerankjax.sandbox.multipl_e import INPUTS, find_files

CANDIDATES = ("candidates", "completions")  # the field's names: a plain one, and MultiPL-E's


@dataclasses.dataclass(frozen=True)
class Samples:
    """A prompt and its candidates. `where`: "file" or "file, row n"; `name`: the row's own, or "file:n"."""

    where: str
    name: str
    prompt: str
    candidates: tuple[str, ...]


def read_samples(path: Path) -> list[Samples]:
    """The samples of a file, or of the files of a directory in the order of their names.

    A .jsonl or .jsonl.gz file has an object {"prompt", "candidates" or "completions": [...], "name"?} per row; a .json
    or .json.gz file is one object. Other fields are ignored, and so are a directory's MultiPL-E results files.

    Raises:
        ValueError: names file, row and field of an invalid value; or there are no rows.
    """
    samples = []
    for file in find_files(path, recursive=True) if path.is_dir() else [path]:
        if not file.name.endswith(INPUTS):
            raise ValueError(f"{file}: its name must end in one of {', '.join(INPUTS)}; rename it.")
        by_row = file.name.endswith((".jsonl", ".jsonl.gz"))
        samples += [_samples(file, where, record) for where, record in read_objects(file, by_row=by_row)]
    if not samples:
        raise ValueError(f"{path}: has no rows; give one row per problem.")
    return samples


def _samples(file: Path, where: str, record: dict[str, Any]) -> Samples:
    given = [name for name in CANDIDATES if name in record]
    if len(given) != 1:
        raise ValueError(
            f"{where}: needs exactly one of the fields {' and '.join(map(repr, CANDIDATES))}; the row has "
            f"{sorted(record)}."
        )
    candidates = texts(record, where, given[0])
    prompt = field(record, where, "prompt", str)
    if not prompt:
        raise ValueError(f"{where}: field 'prompt' is empty; give the text that the candidates continue or answer.")
    default = where.replace(str(file), file.name, 1).replace(", row ", ":")
    name = field(record, where, "name", str) if record.get("name") is not None else default
    return Samples(where, name, prompt, candidates)
