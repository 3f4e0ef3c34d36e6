"""A trained reranker as a folder that other tools load."""

import copy
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.weights import save_reranker
from rerankjax.reranker.padding import give_padding, with_padding_row
from rerankjax.reranker.templates import give_template


def save_for_others(
    folder: Path,
    config: ModelConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: str,
    chat: bool,
) -> None:
    """`save_reranker` with a padding token, and a chat template that renders the trained text.

    params: without adapters (see `lora.merge`). chat: as in `give_template`. Raises as `save_reranker`.
    """
    tokenizer = copy.deepcopy(tokenizer)
    give_padding(tokenizer)
    give_template(tokenizer, chat)
    pad = tokenizer.pad_token_id
    config, decoder = with_padding_row(config, params["decoder"], pad)
    params = {"decoder": decoder, "score": params["score"]}
    save_reranker(folder, config, params, pooling=pooling, pad_token_id=pad, tokenizer=tokenizer)
