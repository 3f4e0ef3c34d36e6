"""Metrics of a stage: metrics.jsonl to compute with, TensorBoard events beside it to look at."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tensorboardX import SummaryWriter

from rerankjax.problems.jsonl import read_rows


class WriteMetrics(Protocol):
    def __call__(self, step: int, **metrics: float) -> None: ...


@contextmanager
def metric_writer(directory: Path) -> Iterator[WriteMetrics]:
    """Yields write(step, loss=..., ...), which appends one row; anything float() takes will do, a JAX scalar too.

    Raises FloatingPointError that names metric and step on a value that is not finite, before it is written.
    """
    with (
        open(directory / "metrics.jsonl", "a", encoding="utf-8") as rows,
        SummaryWriter(str(directory / "tensorboard")) as board,
    ):

        def write(step: int, **metrics: float) -> None:
            values = {name: float(value) for name, value in metrics.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{name} is {value} at step {step} ({directory}); lower the learning rate or look at the "
                        "rows before it in metrics.jsonl."
                    )
            rows.write(json.dumps({"step": int(step), **values}) + "\n")
            rows.flush()
            for name, value in values.items():
                board.add_scalar(name, value, step)

        yield write


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """The rows of the stage's metrics.jsonl, oldest first, each with its step."""
    return [row for _, row in read_rows(directory / "metrics.jsonl")]
