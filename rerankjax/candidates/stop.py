"""Stop strings as an automaton over tokens, so that the device knows when a completion is done."""

import functools
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token adds to a text; special tokens add nothing.

    A token is decoded behind an anchor, because decoders strip a leading space from a text's first token.
    """
    anchor = tokenizer.encode("a", add_special_tokens=False)
    before = tokenizer.decode(anchor)
    rows = tokenizer.batch_decode([[*anchor, i] for i in range(len(tokenizer))])
    special = set(tokenizer.all_special_ids)
    return ["" if i in special else row[len(before) :] for i, row in enumerate(rows)]


def stop_table(texts: Sequence[str], stops: Sequence[str]) -> np.ndarray:
    """The automaton's transitions, int32 [states, tokens]: state 0 starts, the last state says that a stop was met.

    Aho and Corasick's automaton over characters (doi 10.1145/360825.360855); each token is run through it from each
    state, so a stop string is found however tokens split it.

    Raises:
        ValueError: a stop string is empty.
    """
    if "" in stops:
        raise ValueError("stop_tokens contains an empty string, which would stop every completion at once: remove it")
    prefixes = sorted({s[:i] for s in stops for i in range(len(s) + 1)} | {""}, key=lambda p: (len(p), p))
    state_of = {p: i for i, p in enumerate(prefixes)}
    done = len(prefixes)

    def follow(prefix: str, char: str) -> str:
        text = prefix + char
        return next(text[i:] for i in range(len(text) + 1) if text[i:] in state_of)

    def run(prefix: str, text: str) -> int:
        for char in text:
            prefix = follow(prefix, char)
            if prefix.endswith(tuple(stops)):
                return done
        return state_of[prefix]

    table = [[run(p, t) if stops else 0 for t in texts] for p in prefixes]
    return np.array([*table, [done] * len(texts)], np.int32)


def joined_table(texts: Sequence[str], stop_sets: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """One automaton for several sets of stop strings: its transitions, and the state in which each set starts.

    Returns int32 [states, tokens] and int32 [sets]. The states of a set follow those of the set before it; all sets
    share the last state, which says that a stop was met. For one set the table is that of `stop_table`.
    """
    tables = [stop_table(texts, stops) for stops in stop_sets]
    sizes = [len(table) - 1 for table in tables]
    starts, met = np.cumsum([0, *sizes[:-1]]), sum(sizes)
    rows = [np.where(t[:-1] == n, met, t[:-1] + start) for t, n, start in zip(tables, sizes, starts, strict=True)]
    return np.concatenate([*rows, np.full((1, len(texts)), met)]).astype(np.int32), starts.astype(np.int32)


@functools.lru_cache(maxsize=16)
def _joined(tokenizer: PreTrainedTokenizerBase, stop_sets: tuple[tuple[str, ...], ...]) -> tuple[np.ndarray, ...]:
    return joined_table(token_texts(tokenizer), stop_sets)


def stops_of(tokenizer: PreTrainedTokenizerBase, stops: Sequence[tuple[str, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """The `joined_table` of some prompts' stop strings, and the state int32 [prompts] in which each prompt starts.

    Cached by the sets of stop strings, because a large vocabulary takes seconds.
    """
    stop_sets = tuple(dict.fromkeys(stops))
    table, starts = _joined(tokenizer, stop_sets)
    return table, starts[[stop_sets.index(one) for one in stops]]


def truncate(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string."""
    return text[: min((i for s in stops if (i := text.find(s)) >= 0), default=len(text))]
