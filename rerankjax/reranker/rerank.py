"""A trained reranker as its users have it: a folder in, scores of candidates out."""

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
from rerankjax.prompts.rows import pad_completions, pad_prompts
from rerankjax.prompts.tokenizer import encode_completions, load_tokenizer
from rerankjax.reranker.bradley_terry import pool_scores

TOKENS = 16_384  # in one batch, padding included
LOG_PROBABILITY = "log_probability"  # in the place of a pooling: the decoder is a language model, not a reranker
# Few shapes, for each is compiled: candidates are taken so many at a time behind one prompt, padded to a multiple of so
# many tokens; prompts to a power of two, at least this.
TOGETHER = (16, 4, 1)
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
    """A prompt that nothing can be scored behind, for `reason`; `problem` is its number, from 0."""

    def __init__(self, problem: int, length: int, context: int) -> None:
        self.problem = problem
        self.reason = (
            f"the prompt has {length} tokens; a prompt needs 1 to {context - 1}, for the context holds it and its "
            "candidates: shorten it, or drop the problem"
        )
        super().__init__(f"problem {problem}: {self.reason}")


class Used(NamedTuple):
    """The tokens of a batch: real ones, and those computed, padding among them."""

    real: int
    computed: int


class Row(NamedTuple):
    """A candidate of a problem, and the token ids that stand behind its prompt."""

    problem: int
    candidate: str
    ids: list[int]


@dataclasses.dataclass(frozen=True)
class Reranker:
    """Scores completions of a prompt; higher is better. `pooling` as in `score_behind`.

    What is scored is the prompt's text, the candidate's and the tokenizer's end-of-text token; with `chat` instead a
    conversation by the tokenizer's chat template, the prompt being the user's message and the candidate the answer.

    Raises:
        ValueError: the tokenizer has no end-of-text token, or with `chat` no chat template.
    """

    config: ModelConfig
    params: Params
    tokenizer: PreTrainedTokenizerBase
    pooling: str = "last"
    chat: bool = False
    mesh: Mesh = dataclasses.field(default_factory=make_mesh)

    def __post_init__(self) -> None:
        _check_tokenizer(self.tokenizer, self.chat)

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
        mesh: of the devices that share the work; without it, all, each with the whole model.
        Raises as `rerankjax.model.weights.load_reranker`, `load_tokenizer` and the class.
        """
        folder = weights.find_reranker(path_or_id, revision)
        tokenizer = load_tokenizer(folder)
        _check_tokenizer(tokenizer, chat)  # before the weights, which can take minutes
        mesh = make_mesh() if mesh is None else mesh
        place = functools.partial(sharding_of, mesh=mesh)
        config, params, pooling = weights.load_reranker(folder, sharding=place, dtype=dtype)
        return cls(config, params, tokenizer, pooling, chat, mesh)

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """r(prompt, candidate) of each candidate, float32 [N]."""
        return self.score_all([(prompt, candidates)])[0]

    def rank(self, prompt: str, candidates: Sequence[str]) -> list[int]:
        """The candidates' positions, the best first; of equals the earlier first."""
        return best_first(self.score(prompt, candidates))

    def score_all(
        self,
        problems: Iterable[tuple[str, Sequence[str]]],
        advance: Callable[[int], object] = lambda candidates: None,
        used: Callable[[Used], object] = lambda tokens: None,
    ) -> list[np.ndarray]:
        """`score` of many (prompt, candidates) at once, in batches of `TOKENS`; `advance` hears how many are scored,
        `used` what each batch computed.

        Equal candidates of a prompt are scored once. A candidate that the context has no room for is scored by what
        fits of it.

        Raises:
            PromptLengthError: a prompt has no token, or leaves no room at all.
            ValueError: the chat template writes a prompt otherwise once an answer stands behind it.
        """
        problems = list(problems)
        context = self.config.max_position_embeddings
        groups: dict[tuple[int, int, int], list[tuple[tuple[int, ...], list[Row]]]] = {}
        for number, (prompt, candidates) in enumerate(problems):
            prompt_ids, encoded = self._encode(prompt, list(dict.fromkeys(candidates)))
            if not 0 < len(prompt_ids) < context:
                raise PromptLengthError(number, len(prompt_ids), context)
            rows_behind: dict[tuple[int, ...], list[Row]] = {}  # by what they share of the prompt: nearly always all
            for candidate, ids in encoded.items():
                shared = _shared(prompt_ids, ids)
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

    def _encode(self, prompt: str, candidates: list[str]) -> tuple[list[int], dict[str, list[int]]]:
        """Token ids of the prompt, and of each candidate with the prompt before it."""
        if not self.chat:
            prompt_ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            rows = encode_completions(self.tokenizer, candidates) if candidates else []
            return prompt_ids, {text: prompt_ids + ids for text, ids in zip(candidates, rows, strict=True)}
        asked = [{"role": "user", "content": prompt}]
        render = functools.partial(self.tokenizer.apply_chat_template, tokenize=False)
        opening = render(asked, add_generation_prompt=True)
        texts = [render([*asked, {"role": "assistant", "content": candidate}]) for candidate in candidates]
        for text in texts:
            if not text.startswith(opening):
                at = next((i for i, (a, b) in enumerate(zip(text, opening, strict=False)) if a != b), len(text))
                raise ValueError(
                    "the chat template asks for an answer otherwise than it writes one: the prompt goes on with "
                    f"{opening[at : at + 40]!r}, and with an answer behind it with {text[at : at + 40]!r}; correct the "
                    "tokenizer's chat_template"
                )
        opening_ids, *rows = self.tokenizer([opening, *texts], add_special_tokens=False)["input_ids"]
        return opening_ids, dict(zip(candidates, rows, strict=True))

    def _score_batch(
        self,
        batch: Sequence[tuple[tuple[int, ...], list[Row]]],
        count: int,
        prompt_length: int,
        together: int,
        length: int,
        scores: dict[tuple[int, str], float],
    ) -> None:
        # What fills the batch up is the first prompt and each prompt's last candidate once more.
        filled = [batch[i] if i < len(batch) else batch[0] for i in range(count)]
        pad = self.tokenizer.pad_token_id or 0
        prompts = pad_prompts([prompt for prompt, _ in filled], prompt_length, pad)
        completions = [part[min(i, len(part) - 1)].ids for _, part in filled for i in range(together)]
        split = by_row(self.mesh) if count % row_shards(self.mesh) == 0 else replicated(self.mesh)
        rows = jax.device_put((*prompts, *pad_completions(completions, length, pad)), split)
        out = np.asarray(make_scorer(self.config, self.pooling, self.mesh)(self.params, *rows))
        for place, (_, part) in enumerate(batch):
            for i, row in enumerate(part):
                scores[row.problem, row.candidate] = float(out[place * together + i])


def best_first(scores: np.ndarray) -> list[int]:
    """Positions by falling score; of equals the earlier first."""
    return np.argsort(-scores, kind="stable").tolist()


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
    if chat and not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template: score without chat, or give it the model's chat_template")
    if not chat and tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-text token, with which a candidate ends: set its eos_token to the "
            "one that the model was trained with, or score with chat if it was trained on conversations"
        )


def _shared(prompt: list[int], row: list[int]) -> int:
    """How many tokens of a row are read once for all candidates: those of its prompt, at least one.

    The tokenizer may merge the prompt's end with the candidate's beginning, and something must stand behind them.
    """
    most = min(len(prompt), len(row) - 1)
    return max(1, next((i for i in range(most) if prompt[i] != row[i]), most))


@functools.cache
def make_scorer(config: ModelConfig, pooling: str, mesh: Mesh) -> Callable[..., Float[Array, " B"]]:
    """The jitted `score_behind`: (parameters, prompts, their mask, completions, theirs) -> scores, on every device."""
    score = on_mesh(mesh, functools.partial(score_behind, config, pooling))
    return jax.jit(score, out_shardings=replicated(mesh))


def together_of(candidates: int) -> int:
    """How many of so many candidates are scored behind their prompt at once."""
    return next(size for size in TOGETHER if size < 2 * candidates)


def padded_shape(prompt: int, together: int, completion: int) -> tuple[int, int, int]:
    """(tokens of a prompt, completions behind it, tokens of each) to which such lengths are padded."""
    length = -(-completion // COMPLETION_BUCKET) * COMPLETION_BUCKET
    return max(PROMPT_BUCKET, 1 << (prompt - 1).bit_length()), together, length


def prompts_of(shape: tuple[int, int, int], most: int) -> int:
    """How many prompts of that padded shape, of `most` that there are, one batch takes."""
    prompt, together, length = shape
    count = max(1, TOKENS // (prompt + together * length))
    return 1 << (min(count, most).bit_length() - 1)
