"""JSONL files: one record a line, replaced as a whole or not at all."""

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read_rows(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("file, row n", record) for each line; rows count from 1, blank lines are skipped. Errors as below."""
    return read_objects(Path(path), by_row=True)


def read_objects(path: Path, *, by_row: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("file" or "file, row n", record) of a file that is one JSON object, or has one a row; gzip by its name.

    Raises ValueError that names file and row of what is not a JSON object or cannot be read.
    """
    where = str(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, text in enumerate(file if by_row else [file.read()], start=1):
                where = f"{path}, row {number}" if by_row else str(path)
                if by_row and not text.strip():
                    continue
                record = json.loads(text)
                if not isinstance(record, dict):
                    raise ValueError(f"{where}: expected a JSON object with named fields, got {type(record).__name__}.")
                yield where, record
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}); was the file cut off? Write it again.") from error
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{where}: cannot be read ({error}); was the file cut off? Write it again.") from error


def field(record: dict[str, Any], where: str, name: str, kind: type) -> Any:
    """record[name], or a ValueError that names file, row and field unless it is there and exactly of `kind`."""
    if name not in record:
        raise ValueError(f"{where}: field {name!r} is missing; the row has {sorted(record)}.")
    value = record[name]
    if type(value) is not kind:
        raise ValueError(f"{where}: field {name!r} must be {kind.__name__}, got {value!r:.80}; correct that row.")
    return value


def texts(record: dict[str, Any], where: str, name: str) -> tuple[str, ...]:
    """record[name], a list of texts, or a ValueError that names file, row, field and the number of the first other."""
    values = field(record, where, name, list)
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            place = f"{where}: field {name!r}"
            raise ValueError(f"{place} must contain only strings; number {number} is {value!r:.60}; correct that row.")
    return tuple(values)


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
