"""From problems to candidates: prompts in fixed batches to the device, texts back."""

import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.candidates.candidate import Candidate
from rerankjax.candidates.sampling import SamplingConfig, make_sampler
from rerankjax.candidates.stop import stop_table, token_texts, truncate
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.problems.problem import Problem
from rerankjax.prompts.rows import pad_prompts


def problem_ids(problems: Sequence[Problem]) -> np.ndarray:
    """An id for each problem, uint32 [B], from its name alone: no order and no neighbour changes it."""
    return np.array([zlib.crc32(p.name.encode()) for p in problems], np.uint32)


def generate(
    config: ModelConfig,
    sampling: SamplingConfig,
    params: Params,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: jax.Array,
    samples: int,
    prompt_length: int,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[list[Candidate]]:
    """`samples` candidates a problem, a batch of `batch_size` problems at a time, in the problems' order.

    The next batch is on the device while the caller works on the last one's texts. All problems of one call share
    their stop tokens.
    """
    stop_sets = {p.stop_tokens for p in problems}
    if len(stop_sets) != 1:
        raise ValueError(f"stop_tokens differ between the problems of one call ({len(stop_sets)} sets): group them")
    (stops,) = stop_sets
    table = stop_table(token_texts(tokenizer), stops)
    draw = make_sampler(config, sampling, samples, tokenizer.eos_token_id, tokenizer.pad_token_id, mesh)
    encoded = tokenizer([p.prompt for p in problems], add_special_tokens=False)["input_ids"]

    waiting = None
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        # The last batch is filled with repeats, so that every batch has one shape and compiles once.
        filled = [start + i % len(batch) for i in range(batch_size)]
        prompts, mask = pad_prompts([encoded[i] for i in filled], prompt_length, tokenizer.pad_token_id)
        drawn = draw(params, prompts, mask, key, problem_ids([problems[i] for i in filled]), table)
        if waiting is not None:
            yield _texts(*waiting, tokenizer, stops, samples)
        waiting = batch, drawn
    if waiting is not None:
        yield _texts(*waiting, tokenizer, stops, samples)


def _texts(
    problems: Sequence[Problem],
    drawn: object,
    tokenizer: PreTrainedTokenizerBase,
    stops: Sequence[str],
    samples: int,
) -> list[Candidate]:
    out = jax.device_get(drawn)
    rows = len(problems) * samples
    lengths = out.mask[:rows].sum(axis=1)
    means = (out.raw_log_probs[:rows] * out.mask[:rows]).sum(axis=1) / lengths
    texts = tokenizer.batch_decode([t[:n] for t, n in zip(out.tokens, lengths, strict=False)], skip_special_tokens=True)
    return [
        Candidate(
            problem=problems[i // samples].name,
            sample=i % samples,
            completion=truncate(text, stops),
            log_probability=float(means[i]),
            length=int(lengths[i]),
            finished=bool(out.finished[i]),
        )
        for i, text in enumerate(texts)
    ]
