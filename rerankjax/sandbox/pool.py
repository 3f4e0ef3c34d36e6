"""Programs in, verdicts out: a few boxes side by side, fed no faster than their results are taken."""

import collections
import concurrent.futures
import functools
import hashlib
import os
import queue
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from rerankjax.sandbox import languages, python, toolchains
from rerankjax.sandbox.box import Box, BoxDiedError
from rerankjax.sandbox.task import Judged
from rerankjax.sandbox.verdict import Control, Limits, Program, Result, SandboxError, Verdict

JUDGES: dict[str, Callable[..., Judged]] = {"py": python.judge, **dict.fromkeys(languages.BUT_PYTHON, languages.judge)}
FAST = ("js", "ts")
ATTEMPTS = 3  # under which the sandbox itself may die
EMPTY: dict[str, Any] = {
    "exit_code": None,
    "signal": None,
    "stdout": "",
    "stderr": "",
    "wall_seconds": 0.0,
    "cpu_seconds": 0.0,
}
EMPTY["control"] = Control.NONE
TAIL_CHARACTERS = 4096
UNCONTAINED = "rerankjax.sandbox: contained=False: PROGRAMS RUN WITH YOUR RIGHTS, ON YOUR FILES AND YOUR NETWORK"
REMEMBERED = 4096  # distinct programs whose results are kept for their repetitions


# What a program must not be able to do, tried by one.
PROBE = """
import os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
assert status["Seccomp"] == "2", "no seccomp filter"
assert status["NoNewPrivs"] == "1", "program may gain privileges"
assert all(int(status[kind], 16) == 0 for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb")), "program has capabilities"
assert os.getpid() == 1, "program has no PID namespace of its own"
assert [line.split(":")[0].strip() for line in list(open("/proc/net/dev"))[2:]] == ["lo"], "program has a network"
try:
    os.memfd_create("probe")
except PermissionError:
    pass
else:
    raise AssertionError("the seccomp filter lets through memfd_create")
children = 0
try:
    while children < 8:
        children += 1
        if not os.fork():
            os._exit(0)
except BlockingIOError:
    pass
else:
    raise AssertionError("the kernel does not limit the number of processes")
"""


@functools.cache
def check() -> None:
    """Raises SandboxError, which names what is missing and the remedy, unless programs can be contained here.

    Starts a box and has a program in it try what it must not be able to do; the answer is kept for this process.
    """
    if sys.platform != "linux":
        raise SandboxError(f"sandbox: needs Linux (namespaces, seccomp), but this is {sys.platform}")
    box = Box(Limits(processes=4))
    try:
        reply = box.ask({"source": PROBE, "tests": "", "keep_output": False})
    except BoxDiedError as error:
        raise SandboxError(
            f"sandbox: the box does not start: {error}\nThe sandbox needs bubblewrap with unprivileged user namespaces."
            " In a container: run the container with --privileged, or with seccomp=unconfined, apparmor=unconfined and "
            "CAP_SYS_ADMIN. On a host: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 "
            "kernel.apparmor_restrict_unprivileged_userns=0 (those of these settings that the host has)."
        ) from None
    finally:
        box.close()
    if reply["said"] != "passed":
        raise SandboxError(f"sandbox: the box starts but does not contain programs: {reply['stderr'] or reply}")


class Worker:
    """The boxes that judge one program at a time, each started when the first program needs it."""

    def __init__(self, limits: Limits, *, control: bool | str, contained: bool, fast: bool = False) -> None:
        self.closing = False
        self._control = Control.ONE if control is True else Control(control or Control.NONE)
        self._limits, self._contained, self._fast = limits, contained, fast
        self._boxes: dict[str, Box] = {}
        self._lock = threading.Lock()

    def box(self, kind: str) -> Box:
        with self._lock:
            if kind not in self._boxes:
                self._boxes[kind] = Box(self._limits, kind, contained=self._contained)
                if self.closing:
                    self._boxes[kind].cancel()
            return self._boxes[kind]

    def judge(self, program: Program) -> dict[str, Any]:
        """The fields of the program's Result but its index. Whatever goes wrong here is SANDBOX_ERROR's stderr."""
        verdict, reply = self._judge(program)
        fields = EMPTY | {key: reply[key] for key in EMPTY if key in reply}
        if verdict is not Verdict.PASSED:
            fields["control"] = Control.NONE
        return fields | {"verdict": verdict, "stdout": fields["stdout"][-TAIL_CHARACTERS:]}

    def _judge(self, program: Program) -> Judged:
        sizes = (len(program.source) + len(program.tests), self._limits.source_bytes, "source_bytes")
        stdin = (len(program.stdin), self._limits.stdin_bytes, "stdin_bytes")
        for size, most, name in (sizes, stdin):
            if size > most:
                return Verdict.INPUT_LIMIT, {"stderr": f"sandbox: {size} characters, more than Limits.{name} = {most}"}
        fast = {"fast": True} if self._fast and program.language in FAST else {}
        attempt = 0
        while True:
            attempt += 1
            try:
                return JUDGES[program.language](self.box, program, control=self._control, **fast)
            except BoxDiedError as error:
                if attempt == ATTEMPTS or self.closing:
                    return Verdict.SANDBOX_ERROR, {
                        "stderr": f"sandbox: the box died {attempt} times while it ran this program: {error}"
                    }
            except Exception:  # a fault of ours ends this program's judgement, not the run
                self.close()
                if attempt == ATTEMPTS or self.closing:
                    return Verdict.SANDBOX_ERROR, {"stderr": f"sandbox: {traceback.format_exc()}"}

    def cancel(self) -> None:
        """End what runs and start nothing more: the one call that another thread may make."""
        with self._lock:
            self.closing = True
            for box in self._boxes.values():
                box.cancel()

    def close(self) -> None:
        for box in self._boxes.values():
            box.close()


def run(
    programs: Iterable[Program],
    *,
    workers: int | None = None,
    limits: Limits | None = None,
    control: bool | str = True,
    contained: bool = True,
    fast: bool = False,
) -> Generator[Result, None, None]:
    """Run each program in a sandbox of its own; yields each one's result as it finishes, in no order.

    Args:
        programs: may be endless; at most four a worker are taken ahead of the results that were yielded.
        workers: programs at a time; by default one for each core this process may use.
        limits: of each program, and of its compiler; by default `Limits()`.
        control: where tests have to run in the program's own process, let a pass count only where the program fails
            with an expected value made wrong: one of them, or by turns "every" one. Result.control says what stands
            behind each pass. With "every" also what failed apart from its tests runs once more with them: where that
            passes the verdict is CHEATED.
        contained: False runs programs with the rights of this process, for a kernel that refuses containment and
            programs that can be trusted. Says so, loudly.
        fast: let JavaScript and TypeScript fail a test in a node that other programs share, where one can make another
            fail; only what does not fail there runs in a node of its own.

    A program that occurs again within a few thousand others runs once; each occurrence has its result. Where the
    sandbox itself dies the program runs again, twice at most, then its verdict is SANDBOX_ERROR. Closing the generator
    ends all that runs. Raises SandboxError, before any program runs, where programs cannot be contained (see `check`),
    and before the first of a language whose toolchain is not here; ValueError for a language that is not known.
    """
    prepare(workers, contained, control)
    if contained:
        check()
    count = workers or len(os.sched_getaffinity(0))
    options: dict[str, Any] = {"control": control, "contained": contained, "fast": fast}
    return _run(iter(programs), [Worker(limits or Limits(), **options) for _ in range(count)])


def prepare(workers: int | None, contained: bool, control: bool | str) -> None:
    """What `run` says of its arguments, here and in cluster.py."""
    if workers is not None and workers < 1:
        raise ValueError(f"run: workers is {workers}; it must be at least 1, or None for one per core")
    if control not in (True, False, Control.ONE, Control.EVERY, Control.NONE):
        raise ValueError(f"run: control is {control!r}; it must be True, False or 'every'")
    if not contained:
        warnings.warn(UNCONTAINED, RuntimeWarning, stacklevel=3)
        print(f"\n*** {UNCONTAINED} ***\n", file=sys.stderr, flush=True)


def _run(programs: Iterator[Program], workers: list[Worker]) -> Generator[Result, None, None]:
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def judged(program: Program) -> dict[str, Any]:
        worker = free.get()
        try:
            return worker.judge(program)
        finally:
            free.put(worker)

    executor = concurrent.futures.ThreadPoolExecutor(len(workers), thread_name_prefix="sandbox")
    ended: queue.SimpleQueue[tuple[bytes, concurrent.futures.Future[dict[str, Any]]]] = queue.SimpleQueue()

    def submit(key: bytes, program: Program) -> None:
        executor.submit(judged, program).add_done_callback(lambda future: ended.put((key, future)))

    def finished() -> tuple[bytes, dict[str, Any]]:
        key, future = ended.get()
        return key, future.result()

    try:
        yield from stream(programs, submit, finished, ahead=4 * len(workers), check=toolchains.check)
    finally:
        for worker in workers:
            worker.cancel()
        executor.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            worker.close()


def stream(
    programs: Iterator[Program],
    submit: Callable[[bytes, Program], None],
    finished: Callable[[], tuple[bytes, dict[str, Any]]],
    *,
    ahead: int,
    check: Callable[[str], None],
) -> Iterator[Result]:
    """Each program's result as it finishes; identical programs are judged once.

    Args:
        programs: at most `ahead` of them are taken whose results were not yielded.
        submit: has a program judged, which the key stands for; does not wait.
        finished: waits until a submitted program is judged: its key and the fields of its Result but the index.
        check: raises where programs of a language cannot be judged.
    """
    running: dict[bytes, list[int]] = {}
    done: collections.OrderedDict[bytes, dict[str, Any]] = collections.OrderedDict()
    numbered = enumerate(programs)
    waiting = 0
    more = True
    while more or running:
        while more and waiting < ahead:
            index, program = next(numbered, (-1, None))
            if program is None:
                more = False
                break
            try:
                check(program.language)
            except ValueError as error:
                raise ValueError(f"program {index}: {error}") from None
            key = hashlib.sha256(repr(program).encode(errors="surrogatepass")).digest()
            if key in done:
                yield Result(index=index, **done[key])
                continue
            waiting += 1
            if key in running:
                running[key].append(index)
            else:
                running[key] = [index]
                submit(key, program)
        if running:
            key, outcome = finished()
            indices = running.pop(key)
            waiting -= len(indices)
            if outcome["verdict"] is not Verdict.SANDBOX_ERROR:
                done[key] = outcome
                if len(done) > REMEMBERED:
                    done.popitem(last=False)
            for index in indices:
                yield Result(index=index, **outcome)
