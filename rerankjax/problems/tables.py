"""Rows of files (JSONL, Parquet) and of datasets on the Hugging Face hub, each with the place that errors name."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rerankjax.problems import jsonl

FILES = (".jsonl", ".jsonl.gz", ".parquet")

Rows = Iterator[tuple[str, dict[str, Any]]]


def is_hub_id(source: Path | str) -> bool:
    """Whether `source` names a dataset of the hub, as "nuprl/MultiPL-E", and nothing here."""
    named = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)
    return bool(named) and not Path(source).exists()


def file_rows(path: Path) -> Rows:
    """Yields ("file, row n", record) of a file that ends in one of `FILES`.

    Raises ValueError that names file and row of what cannot be read.
    """
    return _parquet_rows(path) if path.name.endswith(".parquet") else jsonl.read_rows(path)


def hub_rows(name: str, config: str | None, split: str, revision: str | None) -> Rows:
    """Yields ("name@revision, config, split, row n", record) of a dataset of the hub, or of its copy in the cache.

    Raises:
        ConnectionError: the hub cannot be reached.
        ValueError: there is no such dataset, config, split or revision.
    """
    import datasets  # three seconds to import

    try:
        dataset = datasets.load_dataset(name, config, split=split, revision=revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"{name}: the hub cannot be reached ({error}). Load the dataset once while the hub can be reached, so that "
            f"it is in the cache; or give the dataset's file ({' or '.join(FILES)})."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{name}, config {config!r}, split {split!r} at {revision}: {message}") from error
    place = f"{name}@{revision[:7]}" if revision else name
    location = ", ".join(part for part in (place, config, split) if part)
    for number, row in enumerate(dataset, start=1):
        yield f"{location}, row {number}", row


def _parquet_rows(path: Path) -> Rows:
    import pyarrow  # a second to import
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not Parquet ({error}); was the file cut off? Write it again.") from error
