"""A trained reranker for its users: loaded from a folder, it scores candidates."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from transformers import PreTrainedTokenizerBase

from rerankjax.model import weights
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, hidden_states_behind
from rerankjax.model.likelihood import token_log_probs
from rerankjax.model.sharding import by_row, make_mesh, on_mesh, replicated, row_shards, sharding_of
from rerankjax.pairs.labelled import Prompt
from rerankjax.prompts.rows import pad_completions, pad_prompts
from rerankjax.prompts.tokenizer import load_tokenizer
from rerankjax.reranker.bradley_terry import pool_scores
from rerankjax.reranker.encoding import check_tokenizer, encode, shared_length

TOKENS = 16_384  # in one batch, padding included
LOG_PROBABILITY = "log_probability"  # instead of a pooling: the decoder is a language model, not a reranker
# Few shapes, because each is compiled: so many candidates at a time behind one prompt, padded to a multiple of
# COMPLETION_BUCKET tokens; prompts padded to a power of two, at least PROMPT_BUCKET.
CANDIDATES_PER_PROMPT = (16, 4, 1)
COMPLETION_BUCKET = 32
PROMPT_BUCKET = 32


def score_behind(
    config: ModelConfig,
    pooling: str,
    params: Params,
    prompts: Int[Array, "R P"],
    prompt_mask: Bool[Array, "R P"],
    completions: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
) -> Float[Array, " B"]:
    """r(x, y) of B = R * n completions, those of a prompt side by side: each prompt is read once.

    pooling: as in RerankerConfig, or `LOG_PROBABILITY`: log p(y | x) under the decoder, nats.
    """
    ends, hidden = hidden_states_behind(config, params["decoder"], prompts, prompt_mask, completions, mask)
    if pooling == LOG_PROBABILITY:
        first = jnp.repeat(ends, len(hidden) // len(ends), axis=0)[:, None]
        before = jnp.concatenate([first, hidden[:, :-1]], axis=1)
        log_probs = token_log_probs(config, params["decoder"], before, completions)
        return jnp.sum(jnp.where(mask, log_probs, 0.0), axis=1)
    return pool_scores(pooling, params["score"], hidden, mask, 0)


class PromptLengthError(ValueError):
    """A prompt of a length that cannot be scored; `reason` says why, and `problem` is its number, from 0."""

    def __init__(self, problem: int, length: int, context: int) -> None:
        self.problem = problem
        self.reason = (
            f"the prompt has {length} tokens, but a prompt needs 1 to {context - 1}, because it shares the context "
            "with its candidates: shorten the prompt, or drop the problem"
        )
        super().__init__(f"problem {problem}: {self.reason}")


class Used(NamedTuple):
    """The number of real tokens of a batch, and of computed tokens, including padding."""

    real: int
    computed: int


class Row(NamedTuple):
    """A candidate of a problem, and the token ids that follow the problem's prompt."""

    problem: int
    candidate: str
    ids: list[int]


@dataclasses.dataclass(frozen=True)
class Reranker:
    """Scores completions of a prompt; higher is better. `pooling` as in `score_behind`.

    It scores the prompt's text, the candidate's text and the tokenizer's end-of-text token. With `chat`, it scores a
    conversation by the tokenizer's chat template: the prompt is the user's message, or the conversation up to the
    answer, and the candidate is the answer. `whole` as in `encoding.encode`.

    Raises:
        ValueError: the tokenizer has no end-of-text token, or with `chat` no chat template.
    """

    config: ModelConfig
    params: Params
    tokenizer: PreTrainedTokenizerBase
    pooling: str = "last"
    chat: bool = False
    mesh: Mesh = dataclasses.field(default_factory=make_mesh)
    whole: bool = False

    def __post_init__(self) -> None:
        check_tokenizer(self.tokenizer, self.chat)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: Path | str,
        *,
        chat: bool = False,
        dtype: Any = None,
        revision: str | None = None,
        mesh: Mesh | None = None,
    ) -> "Reranker":
        """A `*ForSequenceClassification` with one label, from a folder or a hub id: ours or anyone's reward model.

        dtype: of the parameters; without it, as saved. The pooling is the checkpoint's.
        mesh: the devices that share the work; without it, all devices, each with the whole model.
        Texts are tokenized `whole`, as other tools do.
        Raises as `rerankjax.model.weights.load_reranker`, `load_tokenizer` and the class.
        """
        folder = weights.find_reranker(path_or_id, revision)
        tokenizer = load_tokenizer(folder)
        check_tokenizer(tokenizer, chat)  # before the weights, which can take minutes
        mesh = make_mesh() if mesh is None else mesh
        place = functools.partial(sharding_of, mesh=mesh)
        config, params, pooling = weights.load_reranker(folder, sharding=place, dtype=dtype)
        return cls(config, params, tokenizer, pooling, chat, mesh, whole=True)

    def score(self, prompt: Prompt, candidates: Sequence[str]) -> np.ndarray:
        """r(prompt, candidate) of each candidate, float32 [N]."""
        return self.score_all([(prompt, candidates)])[0]

    def rank(self, prompt: Prompt, candidates: Sequence[str]) -> list[int]:
        """The candidates' positions, the best first; ties keep their order."""
        return best_first(self.score(prompt, candidates))

    def score_all(
        self,
        problems: Iterable[tuple[Prompt, Sequence[str]]],
        advance: Callable[[int], object] = lambda candidates: None,
        used: Callable[[Used], object] = lambda tokens: None,
    ) -> list[np.ndarray]:
        """`score` of many (prompt, candidates) at once, in batches of `TOKENS`. After each batch, `advance` gets the
        number of candidates scored, and `used` the batch's tokens.

        Equal candidates of a prompt are scored once. A candidate that does not fit the context is cut to fit.

        Raises:
            PromptLengthError: a prompt has no token, or leaves no room at all.
            ValueError: as `encoding.encode`.
        """
        problems = list(problems)
        context = self.config.max_position_embeddings
        groups: dict[tuple[int, int, int], list[tuple[tuple[int, ...], list[Row]]]] = {}
        for number, (prompt, candidates) in enumerate(problems):
            texts = list(dict.fromkeys(candidates))
            prompt_ids, encoded = encode(self.tokenizer, prompt, texts, chat=self.chat, whole=self.whole)
            if not 0 < len(prompt_ids) < context:
                raise PromptLengthError(number, len(prompt_ids), context)
            rows_behind: dict[tuple[int, ...], list[Row]] = {}  # by the shared part of the prompt: nearly always all
            for candidate, ids in encoded.items():
                shared = shared_length(prompt_ids, ids)
                rows_behind.setdefault(tuple(ids[:shared]), []).append(Row(number, candidate, ids[shared:context]))
            for prefix, rows in rows_behind.items():
                rows.sort(key=lambda row: len(row.ids))
                while rows:
                    together = together_of(len(rows))
                    part, rows = rows[:together], rows[together:]
                    shape = padded_shape(len(prefix), together, len(part[-1].ids))
                    groups.setdefault(shape, []).append((prefix, part))
        scores: dict[tuple[int, str], float] = {}
        for (prompt_length, together, length), parts in sorted(groups.items()):
            count = prompts_of((prompt_length, together, length), len(parts))
            for start in range(0, len(parts), count):
                batch = parts[start : start + count]
                self._score_batch(batch, count, prompt_length, together, length, scores)
                real = sum(len(prefix) + sum(len(row.ids) for row in part) for prefix, part in batch)
                used(Used(real, count * (prompt_length + together * length)))
                advance(sum(len(part) for _, part in batch))
        return [
            np.array([scores[number, candidate] for candidate in candidates], np.float32)
            for number, (_, candidates) in enumerate(problems)
        ]

    def _score_batch(
        self,
        batch: Sequence[tuple[tuple[int, ...], list[Row]]],
        count: int,
        prompt_length: int,
        together: int,
        length: int,
        scores: dict[tuple[int, str], float],
    ) -> None:
        # The batch is filled up with copies of the first prompt, and of each prompt's last candidate.
        filled = [batch[i] if i < len(batch) else batch[0] for i in range(count)]
        # Masks mark padding. Its id is 0, which every model has; a tokenizer's own may lie beyond the embedding.
        prompts = pad_prompts([prompt for prompt, _ in filled], prompt_length, 0)
        completions = [part[min(i, len(part) - 1)].ids for _, part in filled for i in range(together)]
        split = by_row(self.mesh) if count % row_shards(self.mesh) == 0 else replicated(self.mesh)
        rows = jax.device_put((*prompts, *pad_completions(completions, length, 0)), split)
        out = np.asarray(make_scorer(self.config, self.pooling, self.mesh)(self.params, *rows))
        for place, (_, part) in enumerate(batch):
            for i, row in enumerate(part):
                scores[row.problem, row.candidate] = float(out[place * together + i])


def best_first(scores: np.ndarray) -> list[int]:
    """Positions by descending score; ties keep their order."""
    return np.argsort(-scores, kind="stable").tolist()


@functools.cache
def make_scorer(config: ModelConfig, pooling: str, mesh: Mesh) -> Callable[..., Float[Array, " B"]]:
    """The jitted `score_behind`: (parameters, prompts, their mask, completions, theirs) -> scores, on every device."""
    score = on_mesh(mesh, functools.partial(score_behind, config, pooling))
    return jax.jit(score, out_shardings=replicated(mesh))


def together_of(candidates: int) -> int:
    """How many of a prompt's `candidates` candidates are scored behind it at once."""
    return next(size for size in CANDIDATES_PER_PROMPT if size < 2 * candidates)


def padded_shape(prompt: int, together: int, completion: int) -> tuple[int, int, int]:
    """The shape to which such lengths are padded: (tokens of a prompt, completions behind it, tokens of each)."""
    length = -(-completion // COMPLETION_BUCKET) * COMPLETION_BUCKET
    return max(PROMPT_BUCKET, 1 << (prompt - 1).bit_length()), together, length


def prompts_of(shape: tuple[int, int, int], most: int) -> int:
    """How many prompts of that padded shape one batch takes, at most `most`."""
    prompt, together, length = shape
    count = max(1, TOKENS // (prompt + together * length))
    return 1 << (min(count, most).bit_length() - 1)
