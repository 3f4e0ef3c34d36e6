"""From problems to candidates: prompts to the device, texts back."""

import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.candidates.candidate import Candidate
from rerankjax.candidates.engine import EngineConfig, Prompt, make_engine
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.candidates.stop import stops_of, truncate
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.problems.problem import Problem


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
    used: Callable[[float, float], object] = lambda waited_seconds, real_tokens: None,
) -> Iterator[Candidate]:
    """`samples` candidates of each problem, as they end; `batch_size` problems are under way at a time.

    The device draws on while the caller works on what has ended; `used` hears in the end for how many seconds, at most,
    it waited for the caller nevertheless, and which fraction of the tokens that it computed were real.
    """
    if not problems:
        return
    shape = EngineConfig(batch_size, samples, prompt_length)
    engine = make_engine(config, sampling, shape, tokenizer.eos_token_id, tokenizer.pad_token_id, mesh)
    before, real, computed = engine.idle_seconds, engine.real_tokens, engine.computed_tokens
    encoded = tokenizer([p.prompt for p in problems], add_special_tokens=False)["input_ids"]
    stops, starts = stops_of(tokenizer, [p.stop_tokens for p in problems])
    prompts = map(Prompt, encoded, problem_ids(problems).tolist(), starts.tolist())
    stream = engine.stream(params, prompts, samples=samples, key=key, stops=stops)
    del params  # the engine draws with a copy: one that the caller made for this call has served
    for drawn in stream:
        text = tokenizer.decode(drawn.tokens, skip_special_tokens=True)
        yield Candidate(
            problem=problems[drawn.prompt].name,
            sample=drawn.sample,
            completion=truncate(text, problems[drawn.prompt].stop_tokens),
            log_probability=float(drawn.raw_log_probs.mean()),
            length=len(drawn.tokens),
            finished=drawn.finished,
        )
    used(engine.idle_seconds - before, (engine.real_tokens - real) / (engine.computed_tokens - computed))
