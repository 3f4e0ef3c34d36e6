"""From problems to candidates: prompts to the device, texts back."""

import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.candidates.candidate import Candidate
from rerankjax.candidates.engine import FEWEST, EngineConfig, Prompt, chunk_for, make_engine, on_cpu, rows_for
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.candidates.stop import stops_of, truncate
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.sharding import row_shards
from rerankjax.problems.problem import Problem

SHORTEST_PROMPTS = 64  # tokens that an engine keeps of each prompt, at least: each length is compiled
TURNS = 4  # prompts that a row takes in turn on a CPU, or more: at the end, rows wait for the longest sample
LENGTHS_TOGETHER = 8  # times as many tokens as an engine's shortest prompt its longest may have


def problem_ids(problems: Sequence[Problem]) -> np.ndarray:
    """An id for each problem, uint32 [B], from its name alone: independent of the order and of other problems."""
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
    prompts_in_flight: int,
    slots: int,
    mesh: Mesh,
    reads: int = EngineConfig.reads,
    used: Callable[[float, float], object] = lambda waited_seconds, real_tokens: None,
) -> Iterator[Candidate]:
    """`samples` candidates of each problem, as they end, those with long prompts first; `slots` candidates of each of
    `prompts_in_flight` problems are in flight at a time. At most `reads` problems are read at once.

    The device draws while the caller processes finished candidates. At the end, `used` gets the seconds, at most, that
    the device waited for the caller, and the fraction of its computed tokens that were real.
    """
    if not problems:
        return
    encoded = tokenizer([p.prompt for p in problems], add_special_tokens=False)["input_ids"]
    stops, starts = stops_of(tokenizer, [p.stop_tokens for p in problems])
    prompts = list(map(Prompt, encoded, problem_ids(problems).tolist(), starts.tolist()))
    # Each engine waits for its last samples, so few engines; the last are shorter when long prompts come first.
    together: list[list[int]] = []
    for number in sorted(range(len(prompts)), key=lambda n: -len(prompts[n].tokens)):
        length = max(SHORTEST_PROMPTS, len(prompts[number].tokens))
        if not together or LENGTHS_TOGETHER * length < len(prompts[together[-1][0]].tokens):
            together.append([])
        together[-1].append(number)
    waited = real = computed = 0.0
    for numbers in together:
        length = _kept(len(prompts[numbers[0]].tokens), prompt_length)
        needed = turns = len(numbers) * -(-samples // slots)
        if on_cpu(mesh):
            needed = min(turns, max(-(-turns // TURNS), -(-FEWEST // slots)))
        rows = min(prompts_in_flight, rows_for(needed, row_shards(mesh)))
        shape = EngineConfig(rows, slots, length, chunk_for(mesh), reads)
        engine = make_engine(config, sampling, shape, tokenizer.eos_token_id, tokenizer.pad_token_id, mesh)
        before = engine.idle_seconds, engine.real_tokens, engine.computed_tokens
        for drawn in engine.stream(params, [prompts[n] for n in numbers], samples=samples, key=key, stops=stops):
            problem = problems[numbers[drawn.prompt]]
            text = str(tokenizer.decode(drawn.tokens, skip_special_tokens=True))
            yield Candidate(
                problem=problem.name,
                sample=drawn.sample,
                completion=truncate(text, problem.stop_tokens),
                log_probability=float(drawn.raw_log_probs.mean()),
                length=len(drawn.tokens),
                finished=drawn.finished,
            )
        waited += engine.idle_seconds - before[0]
        real, computed = real + engine.real_tokens - before[1], computed + engine.computed_tokens - before[2]
    used(waited, real / computed)


def _kept(length: int, longest: int) -> int:
    """Tokens that an engine keeps of each prompt: a sample attends to all of them, including padding, at every step."""
    return min(longest, max(SHORTEST_PROMPTS, 1 << (length - 1).bit_length()))
