"""Metrics of a stage: metrics.jsonl for programs, TensorBoard events for people."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tensorboardX import SummaryWriter

from rerankjax.problems.jsonl import read_rows, write_text
from rerankjax.run.hosts import is_first


class WriteMetrics(Protocol):
    def __call__(self, step: int, **metrics: float) -> dict[str, float]: ...


@contextmanager
def metric_writer(directory: Path, before: Sequence[dict[str, float]] = ()) -> Iterator[WriteMetrics]:
    """Yields write(step, loss=..., ...), which appends one row; a value is anything that float() takes.

    before: the rows that training resumes from. Of several processes only the first writes.
    Raises FloatingPointError, which names metric and step, if a value is not finite, before the row is written.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(directory / "metrics.jsonl", "w", encoding="utf-8"))] if is_first() else []
        boards = [stack.enter_context(SummaryWriter(str(directory / "tensorboard")))] if is_first() else []

        def write(step: int, **metrics: float) -> dict[str, float]:
            values = {name: float(value) for name, value in metrics.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{name} is {value} at step {step} ({directory}); lower the learning rate, or look at the "
                        "previous rows of metrics.jsonl."
                    )
            row = {"step": int(step), **values}
            for rows in files:
                rows.write(json.dumps(row) + "\n")
                rows.flush()
            for board in boards:
                for name, value in values.items():
                    board.add_scalar(name, value, step)
            return row

        for row in before:
            write(int(row["step"]), **{name: value for name, value in row.items() if name != "step"})
        yield write


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """The rows of the stage's metrics.jsonl, oldest first, each with its step."""
    return [row for _, row in read_rows(directory / "metrics.jsonl")]


def write_real_tokens(directory: Path, real_tokens: float) -> None:
    """metrics.jsonl of a stage that trains nothing: the fraction of its computed tokens that are not padding."""
    if is_first():
        write_text(directory / "metrics.jsonl", json.dumps({"step": 1, "real_tokens": real_tokens}) + "\n")


def write_waits(directory: Path, what: str, seconds: float) -> None:
    """waits.json: for how long at most this process's devices waited for the host's `what` since the last start."""
    if is_first():
        write_text(directory / "waits.json", json.dumps({f"{what}_seconds": round(seconds, 3)}) + "\n")
