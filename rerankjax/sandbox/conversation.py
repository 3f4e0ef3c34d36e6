"""What goes between the host and a program that runs: standard input, and the values that it tells."""

import contextlib
import fcntl
import os
import select
import time
from collections.abc import Callable

MESSAGE_BYTES = 16 << 20  # most that a program can tell in one piece
PIPE_BYTES = 1 << 16
SEALED = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
NOWHERE = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

Listener = Callable[[bytes], bool]


def pipe(open_ends: contextlib.ExitStack) -> tuple[int, int]:
    """Both ends of a pipe, that a program of whatever user may open again by its name in /proc."""
    ends = os.pipe()
    for end in ends:
        open_ends.callback(os.close, end)
        os.fchmod(end, 0o666)
    return ends


def holding(data: str, open_ends: contextlib.ExitStack) -> int:
    """A descriptor to read `data` from: once, where a pipe holds that much."""
    encoded = data.encode(errors="replace")
    if len(encoded) <= PIPE_BYTES:
        reader, writer = os.pipe()
        open_ends.callback(os.close, reader)
        os.fchmod(reader, 0o666)
        os.write(writer, encoded)
        os.close(writer)
        return reader
    file = os.memfd_create("stdin", os.MFD_ALLOW_SEALING)
    open_ends.callback(os.close, file)
    with open(file, "wb", closefd=False) as whole:
        whole.write(encoded)
    os.lseek(file, 0, os.SEEK_SET)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALED)
    return file


class Conversation:
    """What a program tells, frame by frame, each ended by a null byte and answered by a line end or by nothing more."""

    def __init__(self, tell: int, heard: int, listen: Listener) -> None:
        self._tell, self._heard, self._listen = tell, heard, listen
        self._buffer = bytearray()
        self._going = True
        os.set_blocking(tell, False)
        os.set_blocking(heard, False)

    def goes_on(self, reply: int, deadline: float) -> bool:
        """Wait for frames or the box's reply, and answer frames. False once there is a reply, or nothing to hear."""
        poller = select.poll()
        poller.register(reply, select.POLLIN)
        poller.register(self._tell, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)]
        if not ready:
            raise TimeoutError("the box did not answer in time")
        if self._tell in ready:
            self.finish()
        return reply not in ready and self._going

    def finish(self) -> None:
        """Take what has been told already."""
        with contextlib.suppress(BlockingIOError):
            while self._going and (data := os.read(self._tell, 1 << 16)):
                self._buffer += data
                frames: list[bytearray] = []
                if 0 in data:
                    *frames, self._buffer = self._buffer.split(b"\0")
                for frame in frames:
                    self._going = self._going and self._listen(bytes(frame))
                if len(self._buffer) > MESSAGE_BYTES:
                    self._going = False
                with contextlib.suppress(OSError):
                    if self._going:
                        os.write(self._heard, b"\n" * len(frames))
                    else:
                        # The program has no one to write to or read from.
                        for end in (self._tell, self._heard):
                            os.dup2(NOWHERE, end, inheritable=False)
