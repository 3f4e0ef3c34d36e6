"""Token ids of uneven length as rectangles: prompts padded on the left, completions on the right."""

from collections.abc import Iterator, Sequence

import numpy as np


def pad_prompts(prompts: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded tokens int32 [B, length] and their mask bool [B, length].

    Raises:
        ValueError: a prompt is empty or longer than `length`.
    """
    return _pad(prompts, length, pad, left=True, what="max_prompt_length")


def pad_completions(completions: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded tokens int32 [B, length] and their mask bool [B, length].

    Raises:
        ValueError: a completion is empty or longer than `length`.
    """
    return _pad(completions, length, pad, left=False, what="max_completion_length")


def pad_rows(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prompt_length: int,
    completion_length: int,
    pad: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt beside completion: tokens int32 and mask bool, both [B, prompt_length + completion_length]."""
    p, p_mask = pad_prompts(prompts, prompt_length, pad)
    c, c_mask = pad_completions(completions, completion_length, pad)
    return np.concatenate([p, c], axis=1), np.concatenate([p_mask, c_mask], axis=1)


def _pad(rows: Sequence[Sequence[int]], length: int, pad: int, left: bool, what: str) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if not 0 < len(row) <= length:
            raise ValueError(f"row {i} has {len(row)} tokens, but {what} = {length}: drop the row, or raise {what}")
        columns = slice(length - len(row), length) if left else slice(0, len(row))
        tokens[i, columns], mask[i, columns] = row, True
    return tokens, mask


def shuffled_batches(
    size: int, batch_size: int, steps: int, seed: Sequence[int], blocks: Sequence[Sequence[int]] | None = None
) -> Iterator[np.ndarray]:
    """Indices int64 [batch_size], `steps` times: epoch after epoch, each in a fresh order that `seed` decides.

    A batch may straddle two epochs, so every example is seen equally often to within one.
    blocks: all indices, those that stay together in one sequence each.
    """
    order = np.empty(0, np.int64)
    epoch = 0
    for _ in range(steps):
        while len(order) < batch_size:
            turns = np.random.default_rng([*seed, epoch]).permutation(size if blocks is None else len(blocks))
            order = np.concatenate([order, turns if blocks is None else np.concatenate([blocks[i] for i in turns])])
            epoch += 1
        yield order[:batch_size]
        order = order[batch_size:]
