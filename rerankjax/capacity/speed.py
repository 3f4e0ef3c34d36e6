"""The paper's claim that sampling n times with a small model and reranking is faster than one sample of a large one."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

from rerankjax.capacity.roofline import Chip, cache_bytes, parameter_count, sampling_seconds, score_cost, seconds
from rerankjax.model.config import ModelConfig
from rerankjax.results.render import pipes

CLAIMED = 3.0  # the paper: 6.7B + 6.7B is this many times faster than 33B


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per problem, with up to `problems` problems in flight.

    large_seconds: for one sample of the large model. drawing_seconds, scoring_seconds: for n samples of the small model
    and for their scores. None if memory does not hold even one problem.
    """

    problems: int
    n: int
    large_seconds: float | None
    drawing_seconds: float | None
    scoring_seconds: float | None

    @property
    def small_seconds(self) -> float | None:
        if self.drawing_seconds is None or self.scoring_seconds is None:
            return None
        return self.drawing_seconds + self.scoring_seconds

    @property
    def ratio(self) -> float | None:
        """How many times faster the small models are."""
        return self.large_seconds / self.small_seconds if self.large_seconds and self.small_seconds else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All timings of three models on the same hardware, in the same precision. Lengths are in tokens.

    how: where the seconds come from: "roofline", or "measured" and the weights.
    """

    how: str
    hardware: str
    precision: str
    large: str
    sampler: str
    reranker: str
    prompt_length: int
    completion_length: int
    timings: tuple[Timing, ...]

    def timing(self, problems: int, n: int) -> Timing:
        return next(t for t in self.timings if (t.problems, t.n) == (problems, n))


def sampling_bytes(
    config: ModelConfig, prompts: int, prompt_length: int, samples: int, length: int, dtype_bytes: int = 2
) -> int:
    """Bytes of parameters, and of the cache of all prompts and of their samples at full length."""
    tokens = prompts * (prompt_length + samples * length)
    return parameter_count(config) * dtype_bytes + cache_bytes(config, tokens, dtype_bytes)


def roofline(
    chip: Chip,
    chips: int,
    models: Mapping[str, ModelConfig],
    names: tuple[str, str, str],
    prompt_length: int,
    completion_length: int,
    problems: Sequence[int],
    samples: Sequence[int],
) -> Comparison:
    """The comparison by the roofline of the chips, in bfloat16 (see `rerankjax.capacity.roofline`).

    If memory does not hold that many problems, as many are in flight as it holds.

    Args:
        names: of the large model, the sampler and the reranker in `models`.
        problems: the most in flight; each of these numbers gets its timings.
        samples: values of n, the samples per problem.
    """
    large, sampler, reranker = (models[name] for name in names)
    P, C = prompt_length, completion_length
    memory = chips * chip.memory_bytes

    def timed(most: int, n: int) -> Timing:
        alone = _fitting(most, lambda k: sampling_bytes(large, k, P, 1, C) <= memory)
        beside = parameter_count(reranker) * 2
        together = _fitting(most, lambda k: sampling_bytes(sampler, k, P, n, C) + beside <= memory)
        return Timing(
            problems=most,
            n=n,
            large_seconds=sampling_seconds(large, chip, alone, P, 1, C, chips=chips) / alone if alone else None,
            drawing_seconds=(
                sampling_seconds(sampler, chip, together, P, n, C, chips=chips) / together if together else None
            ),
            scoring_seconds=(
                seconds(score_cost(reranker, together, P, n, C), chip, chips) / together if together else None
            ),
        )

    return Comparison(
        how="roofline",
        hardware=f"{chips} x {chip.name}",
        precision="bfloat16",
        large=names[0],
        sampler=names[1],
        reranker=names[2],
        prompt_length=P,
        completion_length=C,
        timings=tuple(timed(most, n) for most in problems for n in samples),
    )


def chips_for(chip: Chip, needed: int) -> int:
    """The fewest chips, a power of two, whose memory holds `needed` bytes."""
    chips = 1
    while chips * chip.memory_bytes < needed:
        chips *= 2
    return chips


def _fitting(most: int, holds: Callable[[int], bool]) -> int:
    return next((k for k in range(most, 0, -1) if holds(k)), 0)


def table_of(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the large model alone, then the small ones for each n; seconds and how many times faster."""
    c = comparison
    most, samples = (list(dict.fromkeys(getattr(t, field) for t in c.timings)) for field in ("problems", "n"))
    header = ["", "tokens drawn"]
    alone = [f"{c.large}, one sample", f"{c.completion_length}"]
    for problems in most:
        header += [f"{problems} at a time, s", "faster"]
        alone += [_seconds(c.timing(problems, samples[0]).large_seconds), ""]
    rows = [alone]
    for n in samples:
        row = [f"{c.sampler} x {n} + {c.reranker}", f"{n * c.completion_length}"]
        for problems in most:
            t = c.timing(problems, n)
            row += [_seconds(t.small_seconds), "" if t.ratio is None else f"{t.ratio:.2g}"]
        rows.append(row)
    return header, rows


def caption(comparison: Comparison) -> str:
    """Where the seconds come from, and up to which n the paper's claim holds."""
    c = comparison
    limits = []
    for problems in dict.fromkeys(t.problems for t in c.timings):
        enough = [t.n for t in c.timings if t.problems == problems and t.ratio is not None and t.ratio >= CLAIMED]
        upto = f"up to n = {max(enough)}" if enough else "at no n in the table"
        limits.append(f"{problems} at a time: {upto}")
    return (
        "Seconds per problem with the given number of problems in flight (fewer if memory fits fewer), and the "
        f"speed-up over {c.large}; {c.how}, {c.hardware}, {c.precision}; prompts of {c.prompt_length} tokens, "
        f"completions of {c.completion_length} tokens. At least {CLAIMED:g} times faster, with {'; '.join(limits)}."
    )


def markdown(comparison: Comparison) -> str:
    """The table with its caption below; ends with a newline."""
    header, rows = table_of(comparison)
    return f"{pipes(header, rows)}\n{caption(comparison)}\n"


def to_json(comparison: Comparison) -> str:
    """Everything, with the parts of each time; ends with a newline."""
    fields = dataclasses.asdict(comparison)
    timings = [dataclasses.asdict(t) | {"ratio": t.ratio} for t in comparison.timings]
    return json.dumps(fields | {"timings": timings}, indent=1, allow_nan=False) + "\n"


def _seconds(value: float | None) -> str:
    return "does not fit" if value is None else f"{value:.3g}"
