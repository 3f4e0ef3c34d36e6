"""The token ids that a reranker reads: of a text, tokenized as other tools do, or of a conversation."""

import functools
import itertools
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from rerankjax.model.packing import Item
from rerankjax.pairs.data import TextPair
from rerankjax.pairs.labelled import Prompt
from rerankjax.prompts.tokenizer import encode_completions


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
    """Raises ValueError if the tokenizer cannot mark the end of an answer."""
    if chat and not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template: score without chat, or give it the model's chat_template")
    if not chat and tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-text token, which marks the end of a candidate: set its eos_token to the one "
            "that the model was trained with, or score with chat if the model was trained on conversations"
        )


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, candidates: Sequence[str], *, chat: bool, whole: bool
) -> tuple[list[int], dict[str, list[int]]]:
    """Token ids of the prompt, and of each candidate with the prompt before it.

    chat: a conversation by the tokenizer's chat template; a prompt that is a text is the user's message.
    whole: prompt, candidate and end of text are tokenized as one text, with the special tokens that the tokenizer adds
        by itself: what transformers, vLLM and TRL score. Otherwise prompt and candidate are tokenized separately,
        without these special tokens: what a policy reads and writes.

    Raises:
        ValueError: the prompt is a conversation and `chat` is False, or the chat template renders a prompt differently
            when an answer follows it.
    """
    if chat:
        return _encode_chat(tokenizer, prompt, candidates)
    if not isinstance(prompt, str):
        raise ValueError("the prompt is a conversation: score with chat")
    if whole:
        texts = [prompt, *(f"{prompt}{candidate}{tokenizer.eos_token}" for candidate in candidates)]
        prompt_ids, *rows = tokenizer(texts)["input_ids"]
    else:
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        rows = [prompt_ids + ids for ids in encode_completions(tokenizer, candidates)]
    return prompt_ids, dict(zip(candidates, rows, strict=True))


def _encode_chat(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, candidates: Sequence[str]
) -> tuple[list[int], dict[str, list[int]]]:
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [m._asdict() for m in prompt]
    render = functools.partial(tokenizer.apply_chat_template, tokenize=False)
    opening = str(render(asked, add_generation_prompt=True))
    texts = [str(render([*asked, {"role": "assistant", "content": candidate}])) for candidate in candidates]
    for text in texts:
        if not text.startswith(opening):
            place = next((i for i, (a, b) in enumerate(zip(text, opening, strict=False)) if a != b), len(text))
            raise ValueError(
                "the chat template renders a prompt differently when an answer follows it: the prompt continues with "
                f"{opening[place : place + 40]!r} without an answer, and with {text[place : place + 40]!r} before an "
                "answer; correct the tokenizer's chat_template"
            )
    opening_ids, *rows = tokenizer([opening, *texts], add_special_tokens=False)["input_ids"]
    return opening_ids, dict(zip(candidates, rows, strict=True))


def shared_length(prompt: Sequence[int], *rows: Sequence[int]) -> int:
    """How many leading tokens the prompt and all rows share, at least one; these are read once for all rows.

    They may be fewer than the prompt's: the tokenizer may merge the prompt's end with an answer's beginning, and each
    row must have a token behind them.
    """
    most = min(len(prompt), *(len(row) - 1 for row in rows))
    return max(1, next((i for i in range(most) if any(row[i] != prompt[i] for row in rows)), most))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[TextPair], *, chat: bool, max_length: int
) -> list[Item]:
    """Token ids of the pairs whose texts both have at most `max_length` tokens, encoded with `whole`: the prompt's
    tokens that all texts of neighbouring pairs share, at least one, and the rest of the chosen and rejected text."""
    items: list[Item] = []
    for prompt, group in itertools.groupby(pairs, key=lambda pair: pair.prompt):
        of_prompt = list(group)
        texts = list(dict.fromkeys(text for pair in of_prompt for text in (pair.chosen, pair.rejected)))
        prompt_ids, encoded = encode(tokenizer, prompt, texts, chat=chat, whole=True)
        fitting = {text: ids for text, ids in encoded.items() if 1 < len(ids) <= max_length}
        shared = shared_length(prompt_ids, *fitting.values()) if fitting else 0
        items += [
            (prompt_ids[:shared], [fitting[text][shared:] for text in (pair.chosen, pair.rejected)])
            for pair in of_prompt
            if pair.chosen in fitting and pair.rejected in fitting
        ]
    return items
