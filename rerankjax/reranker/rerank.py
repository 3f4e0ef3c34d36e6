"""A trained reranker as its users have it: a folder in, scores of candidates out."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from transformers import PreTrainedTokenizerBase

from rerankjax.model import weights
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, hidden_states_behind
from rerankjax.model.sharding import data_mesh, replicated
from rerankjax.prompts.rows import pad_completions, pad_prompts
from rerankjax.prompts.tokenizer import load_tokenizer
from rerankjax.reranker.bradley_terry import pool_scores
from rerankjax.reranker.score import encode_completions

TOKENS = 16_384  # in one batch, padding included
MOST_TOGETHER = 16  # candidates of one prompt in one batch
PROMPT_BUCKET, COMPLETION_BUCKET = (
    32,
    16,
)  # lengths are padded to a power of two above the first, a multiple of the other


def score_behind(
    config: ModelConfig,
    pooling: str,
    params: Params,
    prompts: Int[Array, "R P"],
    prompt_mask: Bool[Array, "R P"],
    completions: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
) -> Float[Array, " B"]:
    """r(x, y) of B = R * n completions, those of a prompt side by side: each prompt is read once."""
    _, hidden = hidden_states_behind(config, params["decoder"], prompts, prompt_mask, completions, mask)
    return pool_scores(pooling, params["score"], hidden, mask, 0)


@dataclasses.dataclass(frozen=True)
class Reranker:
    """Scores completions of a prompt; higher is better. `pooling` as in RerankerConfig."""

    config: ModelConfig
    params: Params
    tokenizer: PreTrainedTokenizerBase
    pooling: str = "last"

    @classmethod
    def from_pretrained(cls, path_or_id: Path | str, *, dtype: Any = None, revision: str | None = None) -> "Reranker":
        """A `*ForSequenceClassification` with one label, from a folder or a hub id: ours or anyone's reward model.

        dtype: of the parameters; without it, as saved. Raises as `rerankjax.model.weights.load_reranker`.
        """
        config, params = weights.load_reranker(
            path_or_id, sharding=replicated(data_mesh()), dtype=dtype, revision=revision
        )
        return cls(config, params, load_tokenizer(Path(path_or_id)))

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """r(prompt, candidate) of each candidate, float32 [N]."""
        return self.score_all([(prompt, candidates)])[0]

    def rank(self, prompt: str, candidates: Sequence[str]) -> list[int]:
        """The candidates' positions, the best first; of equals the earlier first."""
        return np.argsort(-self.score(prompt, candidates), kind="stable").tolist()

    def score_all(
        self,
        problems: Iterable[tuple[str, Sequence[str]]],
        advance: Callable[[int], object] = lambda candidates: None,
    ) -> list[np.ndarray]:
        """`score` of many (prompt, candidates) at once, in batches of `TOKENS`; `advance` hears how many are scored.

        Equal candidates of a prompt are scored once. A candidate that the context has no room for is scored by what
        fits of it. Raises ValueError for a prompt that leaves no room at all.
        """
        problems = list(problems)
        groups: dict[tuple[int, int, int], list[tuple[list[int], list[tuple[int, str, list[int]]]]]] = {}
        for number, (prompt, candidates) in enumerate(problems):
            prompt_ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            room = self.config.max_position_embeddings - len(prompt_ids)
            if not prompt_ids or room < 1:
                raise ValueError(
                    f"problem {number}: its prompt has {len(prompt_ids)} tokens; a prompt needs 1 to "
                    f"{self.config.max_position_embeddings - 1}, for the context holds it and its candidates"
                )
            distinct = list(dict.fromkeys(candidates))
            encoded = [ids[:room] for ids in encode_completions(self.tokenizer, distinct)] if distinct else []
            ordered = sorted(zip(distinct, encoded, strict=True), key=lambda one: len(one[1]))
            for start in range(0, len(ordered), MOST_TOGETHER):
                part = [(number, *one) for one in ordered[start : start + MOST_TOGETHER]]
                shape = (_power(len(prompt_ids), PROMPT_BUCKET), _power(len(part), 1), _multiple(len(part[-1][2])))
                groups.setdefault(shape, []).append((prompt_ids, part))
        scores: dict[tuple[int, str], float] = {}
        for (prompt_length, together, length), parts in sorted(groups.items()):
            rows = max(1, TOKENS // (prompt_length + together * length))
            rows = 1 << (min(rows, len(parts)).bit_length() - 1)
            for start in range(0, len(parts), rows):
                batch = parts[start : start + rows]
                self._score_batch(batch, rows, prompt_length, together, length, scores)
                advance(sum(len(part) for _, part in batch))
        return [
            np.array([scores[number, candidate] for candidate in candidates], np.float32)
            for number, (_, candidates) in enumerate(problems)
        ]

    def _score_batch(
        self,
        batch: Sequence[tuple[list[int], list[tuple[int, str, list[int]]]]],
        rows: int,
        prompt_length: int,
        together: int,
        length: int,
        scores: dict[tuple[int, str], float],
    ) -> None:
        # What fills the batch up is the first prompt and each prompt's last candidate once more.
        filled = [batch[i] if i < len(batch) else batch[0] for i in range(rows)]
        pad = self.tokenizer.pad_token_id or 0
        prompts = pad_prompts([prompt for prompt, _ in filled], prompt_length, pad)
        completions = [part[min(i, len(part) - 1)][2] for _, part in filled for i in range(together)]
        out = np.asarray(
            _scorer(self.config, self.pooling)(
                self.params, *map(jnp.asarray, (*prompts, *pad_completions(completions, length, pad)))
            )
        )
        for row, (_, part) in enumerate(batch):
            for i, (number, candidate, _) in enumerate(part):
                scores[number, candidate] = float(out[row * together + i])


@functools.cache
def _scorer(config: ModelConfig, pooling: str) -> Callable[..., Float[Array, " B"]]:
    return jax.jit(functools.partial(score_behind, config, pooling))


def _power(length: int, least: int) -> int:
    return max(least, 1 << (length - 1).bit_length())


def _multiple(length: int) -> int:
    return -(-length // COMPLETION_BUCKET) * COMPLETION_BUCKET
