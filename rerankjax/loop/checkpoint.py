"""Checkpoints: a pytree of arrays on disk, through Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rerankjax.loop.rundir import durable


def save(path: Path, tree: Any) -> None:
    """Writes `tree` to the new directory `path`, and waits until it is there."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(durable(path.absolute()), tree)


def restore(path: Path, like: Any) -> Any:
    """The tree at `path`, in the shapes and shardings of `like` (arrays or `jax.ShapeDtypeStruct`s)."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(durable(path.absolute()), like)


def abstract(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """The shapes and types of `tree`, placed by `sharding`: what `restore` wants."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
