"""A trained reranker for its users: loaded from a folder, it scores candidates."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from transformers import PreTrainedTokenizerBase

from rerankjax.model import weights
from rerankjax.model.attention import skips
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import packed_log_probs, tokens_of_completions
from rerankjax.model.packing import TOKENS_PER_COMPLETION, Item, PackConfig, Packed, find_completions, pack
from rerankjax.model.sharding import by_row, make_mesh, on_mesh, replicated, row_shards, sharding_of
from rerankjax.pairs.labelled import Prompt
from rerankjax.prompts.tokenizer import load_tokenizer
from rerankjax.reranker.bradley_terry import packed_scores
from rerankjax.reranker.encoding import check_tokenizer, encode, shared_length

TOKENS = 16_384  # in one batch, padding included
ROW = 512  # tokens of a row, if there are so many and prompts are not long: longer rows mask more of attention
LONG_ROW, CUT = 4_096, 128  # tokens of a row where attention skips what is masked, and what they are a multiple of
LOG_PROBABILITY = "log_probability"  # instead of a pooling: the decoder is a language model, not a reranker
PACKED = 4_096  # problems packed at a time, which bounds the host's memory


def score_packed(config: ModelConfig, pooling: str, params: Params, packed: Packed) -> Float[Array, "B N"]:
    """r(x, y) of each completion; arbitrary numbers where there is no completion.

    pooling: as in RerankerConfig, or `LOG_PROBABILITY`: log p(y | x) under the decoder, nats.
    """
    if pooling != LOG_PROBABILITY:
        return packed_scores(config, pooling, params, packed)
    log_probs, _ = packed_log_probs(config, params["decoder"], packed)
    return jnp.sum(jnp.where(tokens_of_completions(packed), log_probs[..., None], 0.0), axis=1)


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


class Places(NamedTuple):
    """Where the scores of a batch's M completions stand, and whose they are: `candidate` of `problem`, from 0."""

    row: Int[np.ndarray, " M"]
    column: Int[np.ndarray, " M"]
    problem: Int[np.ndarray, " M"]
    candidate: Int[np.ndarray, " M"]


@dataclasses.dataclass(frozen=True)
class Reranker:
    """Scores completions of a prompt; higher is better. `pooling` as in `score_packed`.

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

        A candidate that does not fit the context is cut to fit. Equal candidates of a prompt are scored once.

        Raises:
            PromptLengthError: a prompt has no token, or leaves no room at all.
            ValueError: as `encoding.encode`.
        """
        problems = list(problems)
        context = self.config.max_position_embeddings
        items: list[Item] = []  # what a prompt and its candidates share, and the rest of each candidate
        owners: list[list[list[tuple[int, str]]]] = []  # of each item's candidates: problems and texts, equal when cut
        for number, (prompt, candidates) in enumerate(problems):
            distinct = list(dict.fromkeys(candidates))
            prompt_ids, encoded = encode(self.tokenizer, prompt, distinct, chat=self.chat, whole=self.whole)
            if not 0 < len(prompt_ids) < context:
                raise PromptLengthError(number, len(prompt_ids), context)
            # By the shared part of the prompt, which is nearly always all of it, and the rest.
            behind: dict[tuple[int, ...], dict[tuple[int, ...], list[tuple[int, str]]]] = {}
            for candidate, ids in encoded.items():
                shared = shared_length(prompt_ids, ids)
                rests = behind.setdefault(tuple(ids[:shared]), {})
                rests.setdefault(tuple(ids[shared:context]), []).append((number, candidate))
            for prefix, rests in behind.items():
                items.append((prefix, list(rests)))
                owners.append(list(rests.values()))
        scores: dict[tuple[int, str], float] = {}
        scorer = make_scorer(self.config, self.pooling, self.mesh)
        for batch, places in batches(items, row_shards(self.mesh), skips(self.config.attention)):
            out = scorer(self.params, jax.device_put(batch, by_row(self.mesh)))
            own = np.asarray(out)[places.row, places.column].tolist()
            done = [owners[item][candidate] for item, candidate in zip(places.problem, places.candidate, strict=True)]
            scores |= {owner: score for score, those in zip(own, done, strict=True) for owner in those}
            used(Used(int(np.sum(batch.sequence > 0)), batch.sequence.size))
            advance(sum(map(len, done)))
        return [
            np.array([scores[number, candidate] for candidate in candidates], np.float32)
            for number, (_, candidates) in enumerate(problems)
        ]


def best_first(scores: np.ndarray) -> list[int]:
    """Positions by descending score; ties keep their order."""
    return np.argsort(-scores, kind="stable").tolist()


@functools.cache
def make_scorer(config: ModelConfig, pooling: str, mesh: Mesh) -> Callable[..., Float[Array, "B N"]]:
    """The jitted `score_packed`: (parameters, packed) -> scores, on every device."""
    score = on_mesh(mesh, functools.partial(score_packed, config, pooling))
    return jax.jit(score, out_shardings=replicated(mesh))


def batches(problems: Sequence[Item], shards: int, long_rows: bool = False) -> Iterator[tuple[Packed, Places]]:
    """The problems' prompts and candidates, packed to be scored, in batches of at most `TOKENS`. long_rows: whether
    attention skips pairs of tokens of different problems and candidates."""
    totals = [len(prompt) + sum(map(len, candidates)) for prompt, candidates in problems]
    if not totals:
        return
    longest = max(len(prompt) + max(map(len, candidates)) for prompt, candidates in problems)
    whole = [whole_problem(len(prompt), total) for (prompt, _), total in zip(problems, totals, strict=True)]
    sizes = scoring_sizes(longest, sum(whole) // len(whole), sum(totals), shards, long_rows)
    parts = [part for number, problem in enumerate(problems) for part in _parts(number, problem, sizes)]
    for start in range(0, len(parts), PACKED):
        some = parts[start : start + PACKED]
        number, first = np.array([part[:2] for part in some]).T
        rows_of = functools.partial(batch_rows, sizes.rows, shards)
        for batch, source in zip(*pack([item for *_, item in some], sizes, rows_of), strict=True):
            row, column, item, branch = find_completions(batch, source)
            yield batch, Places(row, column, number[item], first[item] + branch)


def _parts(number: int, problem: Item, sizes: PackConfig) -> Iterator[tuple[int, int, Item]]:
    """The problem in as many parts as fit a row: its number, the part's first candidate, the part."""
    prompt, candidates = problem
    first, room = 0, sizes.length - len(prompt)
    for i, candidate in enumerate(candidates):
        if i > first and (len(candidate) > room or i - first == sizes.completions):
            yield number, first, (prompt, candidates[first:i])
            first, room = i, sizes.length - len(prompt)
        room -= len(candidate)
    yield number, first, (prompt, candidates[first:])


def whole_problem(prompt: int, problem: int) -> int:
    """Tokens that a row needs for a problem of `problem` tokens with all its candidates. If its prompt is short, the
    problem may be split over rows that each read the prompt: short rows need fewer products in attention."""
    return min(problem, 4 * prompt)


def scoring_sizes(candidate: int, problem: int, everything: int, shards: int, long_rows: bool) -> PackConfig:
    """Batches of at most `TOKENS` tokens, or of a row for each shard, for candidates that take up to `candidate` tokens
    with their prompt, problems that on average need `problem`, and `everything` together. Rows have few lengths,
    because each is compiled."""
    least = max(candidate, LONG_ROW if long_rows else min(everything, max(ROW, problem)))
    length = 1 << (least - 1).bit_length() if least <= ROW else -(-least // CUT) * CUT
    of_shard = 1 << max(0, (TOKENS // (length * shards)).bit_length() - 1)
    completions = -(-length // TOKENS_PER_COMPLETION)
    cuts = length // CUT if long_rows else 1
    return PackConfig(of_shard * shards, length, length, completions, each=0, shards=shards, cuts=cuts)


def batch_rows(most: int, shards: int, rows: int) -> list[int]:
    """The rows of each batch, of `rows` in all: `most`, then a quarter of it, then one for each shard. So there are at
    most three shapes, each compiled once, and few empty rows."""
    sizes = [most, *[most // 4] * (most % (4 * shards) == 0), shards]
    each = []
    while rows > 0:
        each.append(next((size for size in sizes if size <= rows), shards))
        rows -= each[-1]
    return each
