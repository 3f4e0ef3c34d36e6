"""Progress tells rate and time left truly, seldom where nobody watches and on one line where somebody does."""

import io

from rich.console import Console

from rerankjax.progress import progress


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def plain_lines(total: int, seconds_a_step: float, unit: str = "steps") -> list[str]:
    out, clock = io.StringIO(), Clock()
    with progress("sft", total, unit, Console(file=out, width=40), clock) as advance:
        for i in range(total):
            clock.seconds += seconds_a_step
            advance(loss=1 / (i + 1))
    return out.getvalue().splitlines()


def test_plain_lines_come_every_ten_seconds_with_rate_and_time_left() -> None:
    assert plain_lines(total=50, seconds_a_step=0.5) == [
        "sft: 20/50 steps, 2.0 steps/s, 0:00:15 left, loss=0.05",
        "sft: 40/50 steps, 2.0 steps/s, 0:00:05 left, loss=0.025",
        "sft: 50/50 steps, 2.0 steps/s, done in 0:00:25, loss=0.02",
    ]


def test_slow_work_is_counted_by_the_minute() -> None:
    assert plain_lines(total=3, seconds_a_step=20, unit="problems") == [
        "sft: 1/3 problems, loss=1",
        "sft: 2/3 problems, 3.0 problems/min, 0:00:20 left, loss=0.5",
        "sft: 3/3 problems, 3.0 problems/min, done in 0:01:00, loss=0.3333",
    ]


def test_terminal_shows_one_line_however_narrow() -> None:
    for width in (30, 60, 120):
        out, clock = io.StringIO(), Clock()
        console = Console(file=out, width=width, force_terminal=True, legacy_windows=False, _environ={"TERM": "xterm"})
        with progress("execute [py]", 400, "programs", console, clock) as advance:
            clock.seconds += 2
            advance(400, passed=0.375)
        last_frame = out.getvalue().split("\x1b[2K")[-1]
        assert last_frame.strip("\x1b[?25h\n").count("\n") == 0
        if width == 120:
            assert "400/400 programs" in last_frame
            assert "passed=0.375" in last_frame


def test_latest_figures_stay_until_there_are_newer() -> None:
    out, clock = io.StringIO(), Clock()
    with progress("ppo", 2, console=Console(file=out, width=200), get_time=clock) as advance:
        advance(kl=0.5)
        advance()
    assert out.getvalue().splitlines()[-1].endswith("kl=0.5")


def test_failure_inside_is_not_reported_as_done() -> None:
    out = io.StringIO()
    try:
        with progress("ppo", 2, console=Console(file=out)) as advance:
            advance()
            raise KeyError
    except KeyError:
        pass
    assert "done" not in out.getvalue()
