"""JSONL files: one record a line, replaced as a whole or not at all."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read_rows(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("file, row n", record) for each line; rows count from 1, blank lines are skipped.

    Raises ValueError that names file and row where a line is not a JSON object.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, row {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error}); was the file cut off? Write it again.") from error
            if not isinstance(record, dict):
                raise ValueError(f"{where}: expected a JSON object with named fields, got {type(record).__name__}.")
            yield where, record


def field(record: dict[str, Any], where: str, name: str, kind: type) -> Any:
    """record[name], or a ValueError that names file, row and field unless it is there and exactly of `kind`."""
    if name not in record:
        raise ValueError(f"{where}: field {name!r} is missing; the row has {sorted(record)}.")
    value = record[name]
    if type(value) is not kind:
        raise ValueError(f"{where}: field {name!r} must be {kind.__name__}, got {value!r}; correct that row.")
    return value


def write_records(path: Path | str, records: Iterable[Any]) -> None:
    """Writes dataclass instances to `path`, one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in records))


def write_text(path: Path | str, text: str) -> None:
    """Replaces `path` atomically: after a crash it holds the old text or the new, never a part."""
    temporary = Path(f"{path}.partial")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
