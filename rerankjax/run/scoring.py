"""A reranker's scores on several hosts: each process scores its share of the problems on its own devices."""

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.reranker.encoding import Prompt
from rerankjax.reranker.rerank import PromptLengthError, Reranker, Used
from rerankjax.run.hosts import allgather_rows, copy_decoder_to_host, copy_to_host, host_mesh_of, host_share


def host_reranker(
    config: ModelConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    pooling: str,
    mesh: Mesh,
    *,
    chat: bool = False,
    whole: bool = False,
) -> Reranker:
    """The reranker `params`, which is split over `mesh`, on this process's devices."""
    decoder = copy_decoder_to_host(config, params["decoder"], mesh)
    heads = copy_to_host({name: part for name, part in params.items() if name != "decoder"}, mesh)
    return Reranker(config, heads | {"decoder": decoder}, tokenizer, pooling, chat, host_mesh_of(mesh), whole)


def score_shares(
    reranker: Reranker,
    problems: Sequence[tuple[Prompt, Sequence[str]]],
    advance: Callable[[int], object] = lambda candidates: None,
) -> tuple[list[np.ndarray], float]:
    """`Reranker.score_all` of the problems, which every process has, and the fraction of this process's computed tokens
    that were real. Each process scores its share and returns all scores; `advance` counts its own candidates.

    Raises:
        PromptLengthError: as `Reranker.score_all`; counts the problems of all processes.
    """
    places, used = host_share(range(len(problems))), list[Used]()
    try:
        own = reranker.score_all([problems[i] for i in places], advance, used.append)
    except PromptLengthError as error:
        error.problem = places[error.problem]
        raise
    rows = [{"place": place, "scores": scores.tolist()} for place, scores in zip(places, own, strict=True)]
    scores_of = {row["place"]: np.array(row["scores"], np.float32) for row in allgather_rows(rows)}
    real = sum(u.real for u in used) / max(1, sum(u.computed for u in used))
    return [scores_of[place] for place in range(len(problems))], real
