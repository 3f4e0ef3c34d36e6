"""Iterative self-training for code generation via reinforced re-ranking, in JAX.

    from rerankjax import Reranker, load_problems, sandbox, train_reranker

`Reranker` scores and ranks candidates, `load_problems` reads benchmarks and files of problems, `sandbox.run` executes
programs against their tests, `train_reranker` makes a reranker of labelled data; docs/rerankers.md has an example of
each. Each is imported when it is first used: `sandbox` and `load_problems` need no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerankjax import sandbox
    from rerankjax.problems.sources import load_problems
    from rerankjax.reranker.rerank import Reranker
    from rerankjax.standalone.train import train_reranker

__all__ = ["Reranker", "load_problems", "sandbox", "train_reranker"]

_MODULES = {
    "Reranker": "rerankjax.reranker.rerank",
    "load_problems": "rerankjax.problems.sources",
    "train_reranker": "rerankjax.standalone.train",
}


def __getattr__(name: str) -> Any:
    if name == "sandbox":
        return importlib.import_module("rerankjax.sandbox")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'rerankjax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
