"""A padding token for rerankers that others load: transformers scores the last token that is not padding."""

import dataclasses

import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params

PADDING = "<|pad|>"
PADDING_NAMES = ("pad", "endoftext", "unk", "reserved", "unused")  # of tokens that no text needs, the likeliest first


def give_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the tokenizer a padding token, unless it has one that is not its end of text: a special token that nothing
    needs, otherwise `PADDING`."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    template = str(tokenizer.chat_template or "")
    free = [
        str(token)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special
        and number not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
        and str(token) not in template
    ]
    likely = [token for name in PADDING_NAMES for token in free if name in token.lower()]
    tokenizer.add_special_tokens({"pad_token": likely[0] if likely else PADDING})


def with_padding_row(shape: ModelConfig, decoder: Params, pad_token_id: int) -> tuple[ModelConfig, Params]:
    """The model with its embedding extended by rows of zeros up to the padding token's, a row that must exist but that
    no text reads. The language-model head is left out."""
    decoder = {name: value for name, value in decoder.items() if name != "lm_head"}
    missing = pad_token_id + 1 - shape.vocab_size
    if missing <= 0:
        return shape, decoder
    table = jnp.pad(decoder["embed_tokens"]["embedding"], ((0, missing), (0, 0)))
    return dataclasses.replace(shape, vocab_size=pad_token_id + 1), decoder | {"embed_tokens": {"embedding": table}}
