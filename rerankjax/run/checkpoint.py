"""Checkpoints: a pytree of arrays on disk, through Orbax."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from rerankjax.model.sharding import placed, shardings_of
from rerankjax.run.rundir import durable_path


def save(path: Path, tree: Any) -> None:
    """Writes `tree` to the new directory `path`, and waits until it is written."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(durable_path(path.absolute()), tree)


def restore(path: Path, like: Any) -> Any:
    """The tree at `path`, in the shapes and shardings of `like` (arrays or `jax.ShapeDtypeStruct`s)."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(durable_path(path.absolute()), like)


def abstract(tree: Any, mesh: Mesh) -> Any:
    """The shapes and types of `tree`, split over the mesh by the sharding rules: a `like` for `restore`."""
    return placed(tree, shardings_of(tree, mesh))
