"""Batches of pairs in which a prompt and its completions are read once, however many of the pairs they are in.

So one forward pass trains on all pairs of a prompt's completions (as InstructGPT does, arXiv 2203.02155, section 3.4).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

from rerankjax.model.packing import Item, PackConfig, Packed, find_completions, pack
from rerankjax.model.training import Counts


class PackedPairs(NamedTuple):
    """Packed prompts and completions, and how often the batch has a pair in which a row's completion (first N) is the
    chosen one and another (second N) is the rejected one."""

    packed: Packed
    wins: Int[Array, "B N N"]


@dataclasses.dataclass
class _Group:
    """A prompt, its completions with their numbers, and the pairs as numbers of the chosen and rejected completion."""

    prompt: tuple[int, ...]
    completions: dict[tuple[int, ...], int] = dataclasses.field(default_factory=dict)
    pairs: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def add(self, chosen: tuple[int, ...], rejected: tuple[int, ...]) -> None:
        a, b = (self.completions.setdefault(text, len(self.completions)) for text in (chosen, rejected))
        self.pairs.append((a, b))

    def fits(self, texts: Iterable[tuple[int, ...]], sizes: PackConfig) -> bool:
        """Whether a row holds the group with these completions added."""
        lengths = list(map(len, self.completions | dict.fromkeys(texts, 0)))
        room = sizes.length - len(self.prompt)
        return sum(lengths) <= min(room, sizes.targets) and len(lengths) <= sizes.completions


def blocks_of(pairs: Sequence[Item], most: int) -> list[list[int]]:
    """The pairs' numbers, in blocks of up to `most` pairs of one prompt, ordered by each block's first number."""
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for number, (prompt, _) in enumerate(pairs):
        of_prompt.setdefault(tuple(prompt), []).append(number)
    return sorted(same[start : start + most] for same in of_prompt.values() for start in range(0, len(same), most))


def pair_batch(pairs: Sequence[Item], sizes: PackConfig) -> tuple[list[PackedPairs], Counts]:
    """A batch of pairs as `Update` takes it, on the host; `sizes` are those for two completions per prompt.

    pairs: a prompt's tokens, and its chosen and its rejected completion's. Pairs of one prompt share its place in a
        row, as many as fit there.
    """
    groups: list[_Group] = []
    latest: dict[tuple[int, ...], _Group] = {}
    for prompt, (chosen, rejected) in pairs:
        texts = tuple(chosen), tuple(rejected)
        group = latest.get(tuple(prompt))
        if group is None or not group.fits(texts, sizes):
            group = latest[tuple(prompt)] = _Group(tuple(prompt))
            groups.append(group)
        group.add(*texts)
    items: list[Item] = [(group.prompt, list(group.completions)) for group in groups]
    packed, sources = pack(items, dataclasses.replace(sizes, each=0))
    parts = []
    for part, source in zip(packed, sources, strict=True):
        wins = np.zeros((*part.real.shape, part.real.shape[1]), np.int32)
        for row, first, number, branch in zip(*find_completions(part, source), strict=True):
            for a, b in groups[number].pairs if branch == 0 else ():  # a group's completions are neighbours
                wins[row, first + a, first + b] += 1
        parts.append(PackedPairs(part, wins))  # type: ignore[arg-type]  # a host's array
    tokens = sum(len(chosen) for _, (chosen, _) in pairs)
    return parts, Counts(np.int32(len(pairs)), np.int32(tokens))  # type: ignore[arg-type]  # a host's scalars
