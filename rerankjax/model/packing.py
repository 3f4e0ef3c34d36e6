"""Sequences of uneven length, end to end in rows of one length: little padding, one shape, one compilation.

A sequence is a prompt and the n completions behind it, each of which sees the prompt and itself: the prompt is read
once for all completions. A sequence's place and neighbours change its results only by rounding.

Shapes: B rows of L tokens, with T completion tokens and N completions at most; padding holds zeros.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from rerankjax.model.segments import SHORT

CUTS = 8  # lengths, at most, to which long rows are cut, and numbers of their targets: each is compiled
TOKENS_PER_COMPLETION = 8  # N has room for completions of this mean length, each with its share of the prompt


class Packed(NamedTuple):
    """Rows of packed sequences, on the host or the device. Places are positions in a row."""

    tokens: Int[Array, "B L"]
    positions: Int[Array, "B L"]  # in its sequence, as RoPE counts
    sequence: Int[Array, "B L"]  # which of the row's sequences, from 1
    branch: Int[Array, "B L"] | None  # which of the sequence's completions, from 1; 0: the prompt; None: all have one
    before: Int[Array, "B T"]  # the place of the token that predicts a completion's token
    target_place: Int[Array, "B T"]  # the place of the completion's token
    mask: Bool[Array, "B T"]
    completion: Int[Array, "B T"]  # which of the row's completions it belongs to
    last: Int[Array, "B N"]  # the place of a completion's last token
    real: Bool[Array, "B N"]


class Sources(NamedTuple):
    """The source of each completion token that `Packed.mask` marks: which item, and which token of its completion."""

    item: Int[np.ndarray, "B T"]
    token: Int[np.ndarray, "B T"]


@dataclasses.dataclass(frozen=True)
class PackConfig:
    """Sizes of a microbatch: `rows` of `length` tokens, each with at most `targets` tokens of `completions`.

    each: completions of a sequence; 0: any number. shards: into which rows are split. cuts: for each batch, `length`
    and `targets` are cut to the smallest multiples of a `cuts`-th that are enough for all of its rows. longest: tokens
    of a sequence, at most; 0: of a row.
    """

    rows: int
    length: int
    targets: int
    completions: int
    each: int
    shards: int = 1
    cuts: int = 1
    longest: int = 0

    @classmethod
    def from_batch_size(
        cls,
        batch_size: int,
        microbatches: int,
        prompt: int,
        completion: int,
        each: int = 1,
        shards: int = 1,
        long_rows: bool = False,
    ) -> "PackConfig":
        """For batches of sequences of at most `prompt` tokens with `each` completions of at most `completion` tokens.

        A microbatch has room for `batch_size / microbatches` of the longest, rounded up to a multiple of the `shards`
        into which rows are split. With `long_rows`, each shard has it in one row, of one of `CUTS` lengths: that is for
        attention that skips pairs of tokens of different sequences. Otherwise, and if no sequence has more than `SHORT`
        tokens, a row has room for one of the longest.
        """
        longest, of_shard = prompt + each * completion, -(-batch_size // (microbatches * shards))
        long_rows = long_rows and longest > SHORT
        rows, length = (shards, of_shard * longest) if long_rows else (of_shard * shards, longest)
        # Short sequences need more than the longest.
        targets = length if long_rows else min(length, each * completion * 3 // 2)
        completions = each * max(1, length // (each * TOKENS_PER_COMPLETION))
        return cls(rows, length, targets, completions, each, shards, CUTS if long_rows else 1, longest)

    @property
    def most(self) -> Int[np.ndarray, " 3"]:
        """Tokens of a row, those of completions, and completions."""
        return np.array((self.length, self.targets, self.completions))

    def cut(self, used: Int[np.ndarray, "B 3"]) -> "PackConfig":
        """The sizes for rows that use so much of `most`."""
        kept = np.max(-(-used * self.cuts // self.most), axis=0)
        length, targets, _ = (-(-self.most * kept // self.cuts)).tolist()
        return dataclasses.replace(self, length=length, targets=min(length, targets))

    def parts(self, rows: int) -> list[int]:
        """The rows of each microbatch of a batch of `rows`: all `self.rows`, except that the last has a half or a
        quarter of them, rounded up to a multiple of `shards`, if that is enough. So an update has at most three shapes,
        each compiled once."""
        whole, rest = divmod(rows, self.rows)
        sizes = [-(-self.rows // (n * self.shards)) * self.shards for n in (4, 2, 1)]
        return [self.rows] * whole + [next(size for size in sizes if size >= rest)] * bool(rest)


class Completions(NamedTuple):
    """Where the M completions of a batch are: `column` in the row's N, and number `branch`, from 0, of item `item`."""

    row: Int[np.ndarray, " M"]
    column: Int[np.ndarray, " M"]
    item: Int[np.ndarray, " M"]
    branch: Int[np.ndarray, " M"]


def find_completions(packed: Packed, sources: Sources) -> Completions:
    """The completions of a host's batch, packed with branches, in the order of rows and columns."""
    row, target = np.nonzero(packed.mask & (sources.token == 0))  # each completion's first token
    place, column = (np.asarray(a)[row, target] for a in (packed.target_place, packed.completion))
    return Completions(row, column, sources.item[row, target], np.asarray(packed.branch)[row, place] - 1)


T = TypeVar("T")
Item = tuple[Sequence[int], Sequence[Sequence[int]]]  # a prompt's tokens, and each of its completions'


def pack(
    items: Sequence[Item], config: PackConfig, parts_of: Callable[[int], list[int]] | None = None
) -> tuple[list[Packed], list[Sources]]:
    """The items in as few rows as first-fit decreasing finds, in microbatches of `parts_of` their number, by default
    `config.parts`, the last filled up with empty rows; without items, one whole microbatch of empty rows. If rows may
    be cut, the items are spread evenly over all rows.

    Raises:
        ValueError: a prompt or completion is empty, or an item is longer than a row.
    """
    sizes = np.array([_size(number, item, config) for number, item in enumerate(items)], int).reshape(-1, 3)
    rows = _first_fit(sizes, config.most)
    parts = (parts_of or config.parts)(len(rows)) if items else [config.rows]
    if config.cuts > 1 and items:
        rows = _evenly(sizes, config.most, sum(parts)) or rows
        config = config.cut(np.array([sizes[row].sum(axis=0) for row in rows]))
    packed, sources = _empty(config, sum(parts))
    for row, numbers in enumerate(rows):
        _fill(packed, sources, row, [(number, items[number]) for number in numbers])

    def cut(arrays: T) -> list[T]:
        ends = itertools.accumulate(parts)
        return [
            jax.tree.map(lambda a, end=end, n=n: a[end - n : end], arrays) for end, n in zip(ends, parts, strict=True)
        ]

    return cut(packed), cut(sources)


def _first_fit(sizes: Int[np.ndarray, "M 3"], most: Int[np.ndarray, " 3"]) -> list[list[int]]:
    """The items of each row, the largest first, each in the first row that has room."""
    room = np.tile(most, (len(sizes), 1))  # of at most one row per item
    rows: list[list[int]] = []
    for number in _largest_first(sizes):
        row = int(np.argmax((room >= sizes[number]).all(axis=1)))
        if row == len(rows):
            rows.append([])
        rows[row].append(number)
        room[row] -= sizes[number]
    return rows


def _evenly(sizes: Int[np.ndarray, "M 3"], most: Int[np.ndarray, " 3"], count: int) -> list[list[int]] | None:
    """The items of each of `count` rows, the largest first, each in the row with most room; None if they do not fit."""
    room = np.tile(most, (count, 1))
    rows: list[list[int]] = [[] for _ in range(count)]
    for number in _largest_first(sizes):
        row = int(np.argmax(room[:, 0]))
        rows[row].append(number)
        room[row] -= sizes[number]
    return rows if (room >= 0).all() else None


def _largest_first(sizes: Int[np.ndarray, "M 3"]) -> list[int]:
    return np.argsort(-sizes[:, 0], kind="stable").tolist()


def real_fraction(packed: Iterable[Packed]) -> float:
    """Real tokens over computed tokens."""
    each = [np.asarray(part.sequence) for part in packed]
    return float(sum((s > 0).sum() for s in each) / sum(s.size for s in each))


def _size(number: int, item: Item, config: PackConfig) -> np.ndarray:
    prompt, completions = item
    lengths = [len(completion) for completion in completions]
    if not prompt or config.each not in (0, len(lengths)) or not min(lengths, default=0):
        each = f", or not {config.each} completions" if config.each else ""
        raise ValueError(f"item {number} has an empty prompt or completion{each}: drop the item")
    size = np.array((len(prompt) + sum(lengths), sum(lengths), len(lengths)))
    if (size > (config.length, config.targets, config.completions)).any():
        raise ValueError(
            f"item {number} has {len(prompt)} + {sum(lengths)} tokens, but a row fits {config.length}, and "
            f"{config.targets} of completions: drop the item, or raise max_prompt_length or max_completion_length"
        )
    return size


def _empty(config: PackConfig, rows: int) -> tuple[Packed, Sources]:
    def zeros(length: int, dtype: Any = np.int32) -> Any:
        return np.zeros((rows, length), dtype)

    L, T, N = config.length, config.targets, config.completions
    branch = None if config.each == 1 else zeros(L)
    of_targets = zeros(T), zeros(T), zeros(T, bool), zeros(T)
    packed = Packed(zeros(L), zeros(L), zeros(L), branch, *of_targets, zeros(N), zeros(N, bool))
    return packed, Sources(zeros(T), zeros(T))


def _fill(packed: Packed, sources: Sources, row: int, items: Iterable[tuple[int, Item]]) -> None:
    place = target = number = 0
    for sequence, (item, (prompt, completions)) in enumerate(items, start=1):
        end = place + len(prompt)
        packed.tokens[row, place:end] = prompt
        packed.positions[row, place:end] = np.arange(len(prompt))
        whole = slice(place, end + sum(map(len, completions)))
        packed.sequence[row, whole] = sequence
        prompt_end, place = end, end
        for branch, completion in enumerate(completions, start=1):
            size = len(completion)
            here, there = slice(place, place + size), slice(target, target + size)
            packed.tokens[row, here] = completion
            packed.positions[row, here] = len(prompt) + np.arange(size)
            if packed.branch is not None:
                packed.branch[row, here] = branch
            packed.before[row, there] = [prompt_end - 1, *range(place, place + size - 1)]
            packed.target_place[row, there] = np.arange(place, place + size)
            packed.mask[row, there] = True
            packed.completion[row, there] = number
            packed.last[row, number], packed.real[row, number] = place + size - 1, True
            sources.item[row, there], sources.token[row, there] = item, np.arange(size)
            place, target, number = place + size, target + size, number + 1
