"""Scores of texts: each distinct completion of a prompt once, in batches of like length."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import Rows
from rerankjax.prompts.rows import pad_rows
from rerankjax.reranker.bradley_terry import make_scorer

BUCKET = 16  # completions are padded to a multiple of this many tokens: few shapes, little padding


def encode_completions(tokenizer: PreTrainedTokenizerBase, completions: Sequence[str]) -> list[list[int]]:
    """Token ids with the end-of-text token that says the solution is whole."""
    rows = tokenizer(list(completions), add_special_tokens=False)["input_ids"]
    return [[*row, tokenizer.eos_token_id] for row in rows]


def score_texts(
    config: ModelConfig,
    pooling: str,
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    prompt_length: int,
    batch_size: int,
    mesh: Mesh,
    advance: Callable[[int], object] = lambda rows: None,
) -> np.ndarray:
    """r(prompt, completion) of each of N pairs of texts, float32 [N]; `advance` hears how many are done.

    A completion that the context has no room for is scored by what fits of it, and so without its end: whatever a
    policy writes has a score. (A sample can be longer than it was: its text need not tokenize as it was sampled.)

    Raises:
        ValueError: a prompt is longer than `prompt_length`.
    """
    row_of = {text: i for i, text in enumerate(dict.fromkeys(zip(prompts, completions, strict=True)))}
    prompt_ids = tokenizer([p for p, _ in row_of], add_special_tokens=False)["input_ids"]
    completion_ids = encode_completions(tokenizer, [c for _, c in row_of])
    room = config.max_position_embeddings - prompt_length
    completion_ids = [ids[:room] for ids in completion_ids]
    scorer = make_scorer(config, pooling, prompt_length, mesh)
    scores = np.empty(len(row_of), np.float32)
    order = sorted(range(len(row_of)), key=lambda i: len(completion_ids[i]))
    late = None
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = min(room, -(-len(completion_ids[batch[-1]]) // BUCKET) * BUCKET)
        filled = np.resize(batch, batch_size)
        rows = pad_rows(
            [prompt_ids[i] for i in filled],
            [completion_ids[i] for i in filled],
            prompt_length,
            width,
            tokenizer.pad_token_id,
        )
        out = scorer(params, Rows(*map(jnp.asarray, rows)))
        if late is not None:
            _settle(scores, *late)
        late = batch, out
        advance(len(batch))
    if late is not None:
        _settle(scores, *late)
    return scores[[row_of[text] for text in zip(prompts, completions, strict=True)]]


def _settle(scores: np.ndarray, batch: Sequence[int], out: jax.Array) -> None:
    scores[list(batch)] = np.asarray(out)[: len(batch)]
