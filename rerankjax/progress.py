"""Progress that a person can read: on a terminal a bar with rate and time left, elsewhere a plain line at intervals."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

PLAIN_SECONDS = 10.0  # between plain lines: often enough to show life, seldom enough for a CI log


class Advance(Protocol):
    def __call__(self, amount: int = 1, **figures: float) -> None: ...


@contextmanager
def progress(
    description: str,
    total: int,
    unit: str = "steps",
    console: Console | None = None,
    get_time: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Yields advance(amount, loss=...), which adds `amount` to the units that are done and shows the latest figures.

    console: standard output unless given. get_time: a monotonic clock in seconds.
    """
    console = console or Console()
    live = console.is_terminal and not console.is_dumb_terminal
    bar = Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=20),
        _Status(table_column=Column(no_wrap=True)),
        console=console,
        get_time=get_time,
    )
    bar.add_task(description, total=total, unit=unit, figures="")
    task = bar.tasks[0]
    last_print = get_time()

    def advance(amount: int = 1, **figures: float) -> None:
        nonlocal last_print
        text = " ".join(f"{name}={value:.4g}" for name, value in figures.items())
        bar.update(task.id, advance=amount, figures=text or task.fields["figures"])
        if not live and (task.finished or get_time() - last_print >= PLAIN_SECONDS):
            last_print = get_time()
            console.print(f"{description}: {_status(task)}", markup=False, highlight=False, soft_wrap=True)

    with bar if live else nullcontext():
        yield advance


class _Status(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_status(task))


def _status(task: Task) -> str:
    """For example "95/250 steps, 24.8 steps/s, 0:00:07 left, loss=0.03158"."""
    unit, speed = task.fields["unit"], task.finished_speed or task.speed
    parts = [f"{task.completed:.0f}/{task.total:.0f} {unit}"]
    if speed:
        parts.append(f"{speed:.1f} {unit}/s" if speed >= 1 else f"{60 * speed:.1f} {unit}/min")
    if task.finished:
        parts.append(f"done in {timedelta(seconds=round(task.finished_time or 0))}")
    elif task.time_remaining is not None:
        parts.append(f"{timedelta(seconds=round(task.time_remaining))} left")
    return ", ".join([*parts, task.fields["figures"]] if task.fields["figures"] else parts)
