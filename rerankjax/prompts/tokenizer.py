"""Tokenizers: one trained on the corpus, saved in Hugging Face's format, and loaded from it or from a GGUF file."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rerankjax.prompts.gguf_tokenizer import beginning_with, read_tokenizer

EOS, PAD = "<|eos|>", "<|pad|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges cross spaces but neither digits nor line ends.

    Code and templated English repeat whole phrases, so merging across spaces shortens a row by about half; digits stay
    alone because a constant decides whether a program is right. Padding is a token of its own: were it the end of text,
    masks could not tell the two apart.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="merged_with_previous"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, with its chat template, in the folder or the GGUF file `path`.

    Raises:
        FileNotFoundError: the folder has no tokenizer.json.
        ValueError: the GGUF file is cut off, or its tokenizer is of a kind that is not supported.
    """
    if path.is_file():
        return read_tokenizer(path)
    if not (path / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{path} has no tokenizer.json, and other formats are not supported: load the tokenizer with transformers, "
            "and save it there with save_pretrained"
        )
    # AutoTokenizer of transformers 5.12 to 5.17 drops the whitespace of some code tokenizers (their #46489).
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    config = path / "tokenizer_config.json"
    fields = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if fields.get("add_bos_token") and not opening(tokenizer):
        begin_texts(tokenizer)  # as the class that the config names does, and this one does not
    return tokenizer


def begin_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    """Makes the tokenizer begin each text with its `bos_token`."""
    processor = beginning_with(str(tokenizer.bos_token), tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processor


def opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that begins each text, "" where none does: chat models may name one that begins turns alone."""
    begins = tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if begins else ""


def encode_completions(tokenizer: PreTrainedTokenizerBase, completions: Sequence[str]) -> list[list[int]]:
    """Token ids with the end-of-text token that says the solution is whole."""
    rows = tokenizer(list(completions), add_special_tokens=False)["input_ids"] if completions else []
    return [[*row, tokenizer.eos_token_id] for row in rows]
