"""Interrupted training resumes from a checkpoint of its whole state, which is written at intervals and at SIGTERM.

A trainer's state is arrays (parameters, optimiser, controllers, the best policy so far), its step, and the metrics
up to that step. Batches and keys are functions of seed and step: nothing else is needed to resume bit for bit.
"""

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from rerankjax.run.rundir import durable_path

EXIT_PREEMPTED = os.EX_TEMPFAIL  # 75: tells launchers to start the run again

T = TypeVar("T")


class Preempted(BaseException):
    """SIGTERM came, and all work is saved. Not an Exception, so that no handler takes it for a failure."""


_deferred = False
_asked = False
_polls = itertools.count()


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """Makes SIGTERM raise `Preempted`: in training at the next step, elsewhere at once.

    With several processes JAX's preemption service takes the signal, so that all stop at the same training step.
    """
    global _asked
    if jax.process_count() > 1:
        yield
        return

    def on_signal(*_: Any) -> None:
        global _asked
        _asked = True
        if not _deferred:
            raise Preempted

    def on_ignored(error: Any) -> None:
        # Python ignores an exception in a callback of its garbage collector; JAX has one: a timer raises it again.
        if error.exc_type is Preempted:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            hook(error)

    signals = (signal.SIGTERM, signal.SIGALRM)
    before, hook = [signal.signal(number, on_signal) for number in signals], sys.unraisablehook
    sys.unraisablehook = on_ignored
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # otherwise its signal would reach the previous handler
        sys.unraisablehook = hook
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
        _asked = False


class Recovery:
    """The checkpoints of one trainer in `directory`: one every `every` steps, and the last `keep` stay."""

    def __init__(self, directory: Path, every: int, keep: int = 2) -> None:
        self._directory = directory
        self._every = every
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(durable_path(directory.absolute()), options=options)

    def __enter__(self) -> "Recovery":
        global _deferred
        _deferred = True
        return self

    def __exit__(self, *_: object) -> None:
        global _deferred
        _deferred = False
        self._manager.close()  # waits until all is written

    def restore(self, start: T) -> tuple[int, T, list[dict[str, float]]]:
        """(step, state, metrics) to resume from: the last checkpoint, with the placement of `start`, or step 0's."""
        step = self._manager.latest_step()
        if step is None:
            return 0, start, []
        like = {name: _like(leaf) for name, leaf in _named(start).items()}
        kinds = ocp.args.Composite(state=ocp.args.StandardRestore(like), metrics=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=kinds)
        leaves = [restored["state"][name] for name in _named(start)]
        return step, jax.tree.unflatten(jax.tree.structure(start), leaves), restored["metrics"]

    def after(self, step: int, snapshot: Callable[[], tuple[Any, list[dict[str, float]]]]) -> None:
        """Call it after each step: saves `snapshot()`, which is (state, metrics), if a checkpoint is due.

        Returns when the arrays may be donated; writing continues in the background.
        Raises Preempted after SIGTERM, once all is written.
        """
        stop = _asked
        if jax.process_count() > 1:
            stop = multihost_utils.reached_preemption_sync_point(next(_polls))
        if not stop and step % self._every:
            return
        state, metrics = snapshot()
        # A copy of the list: the list is written later, when it may have rows of later steps.
        kinds = ocp.args.Composite(state=ocp.args.StandardSave(_named(state)), metrics=ocp.args.JsonSave(list(metrics)))
        self._manager.save(step, args=kinds, force=True)
        if stop:
            self._manager.wait_until_finished()
            raise Preempted

    def keep_inputs(self, step: int, inputs: Any) -> Path:
        """Saves the inputs of a step that diverged, this process's rows of them, beside the checkpoints before it.

        Returns the file's path.
        """
        of_process = f"-process{jax.process_index()}" if jax.process_count() > 1 else ""
        path = durable_path(self._directory.with_name(f"{self._directory.name}-step{step}{of_process}.npz"))
        own = {}
        for name, leaf in _named(inputs).items():
            parts = {str(shard.index): np.asarray(shard.data) for shard in leaf.addressable_shards}
            own[name] = np.concatenate(list(parts.values()))
        with epath.Path(path).open("wb") as file:
            np.savez(file, **own)  # type: ignore[arg-type]
        return path


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _like(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
