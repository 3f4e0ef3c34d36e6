"""Prepares the next batches, and sends them to the device, while the device works on the current one."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """The items, of which a thread makes up to `size` in advance. An error in making an item is raised on taking it.

    waited_seconds: how long the consumer has waited, without the first wait, in which the device may be idle anyway.
    """

    def __init__(self, items: Iterable[T], size: int = 2) -> None:
        self.waited_seconds = 0.0
        self._items = items
        self._made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(size)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._make, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        item, error = self._made.get()
        while error is None:
            yield item
            start = time.monotonic()
            item, error = self._made.get()
            self.waited_seconds += time.monotonic() - start
        if not isinstance(error, StopIteration):
            raise error

    def _make(self) -> None:
        try:
            for item in self._items:
                self._put(item, None)
                if self._closed.is_set():
                    return
            self._put(None, StopIteration())
        except BaseException as error:
            self._put(None, error)

    def _put(self, item: Any, error: BaseException | None) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._made.put((item, error), timeout=0.1)
                return
