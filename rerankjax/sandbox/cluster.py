"""The pool over the hosts of a Ray cluster: for each CPU an actor, whose boxes and compilers stay warm.

Every host needs what one machine needs: this package in Ray's environment, bubblewrap, and the languages' toolchains.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rerankjax.sandbox import pool, toolchains
from rerankjax.sandbox.verdict import Limits, Program, Result, SandboxError, Verdict

try:
    import ray
    from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"rerankjax.sandbox.cluster needs Ray ({error}): pip install 'rerankjax[ray]'") from None

GIVEN = 2  # programs an actor has at a time: while one runs, the next is there already
DEATHS = 2  # of actors under one program
LOOK_SECONDS = 5.0  # while nothing ends, how often to look whether any host is left
CLOSE_SECONDS = 10.0  # for what runs to be ended, before the actors are

Future = concurrent.futures.Future[Any]


def run(
    programs: Iterable[Program],
    *,
    workers: int | None = None,
    limits: Limits | None = None,
    control: bool | str = True,
    contained: bool = True,
    fast: bool = False,
) -> Iterator[Result]:
    """`rerankjax.sandbox.run` over a Ray cluster: the same arguments, results and errors, except as follows.

    workers: programs at a time over the whole cluster; by default one for each of its CPUs. A worker that finds no
        free CPU starts when there is one.

    Uses the cluster that this process is connected to, or else connects it to that of RAY_ADDRESS or the one on this
    machine; ConnectionError where there is none. Programs of a lost host, or of an actor that is out of reach, run
    again elsewhere. Where an actor dies and its host does not, the program that ran may be why: it runs once more, then
    its verdict is SANDBOX_ERROR. Raises SandboxError, which names the host, where one cannot contain programs (before
    any runs) or lacks a toolchain (before the first of its language); also where no host is left.
    """
    pool.prepare(workers, contained, control)
    if not ray.is_initialized():
        ray.init(address="auto")
    options = {"control": control, "contained": contained, "fast": fast}
    actors = _Actors(workers, limits or Limits(), options)
    return _run(iter(programs), actors)


def _run(programs: Iterator[Program], actors: "_Actors") -> Iterator[Result]:
    try:
        actors.start()
        yield from pool.stream(programs, actors.submit, actors.finished, ahead=4 * actors.count, check=actors.check)
    finally:
        actors.close()


def _hosts() -> dict[str, str]:
    """The hosts with CPUs that Ray holds for alive: by node ID, what errors call them."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeName']})" for node in nodes}


def _lacks(contained: bool) -> dict[str, str]:
    """What this host lacks: by language, and under "" what keeps it from running any program."""
    checks: dict[str, Callable[[], None]] = {"": pool.check} if contained else {}
    checks |= {language: functools.partial(toolchains.check, language) for language in toolchains.WITH_TOOLCHAIN}
    lacks = {}
    for language, check in checks.items():
        try:
            check()
        except SandboxError as error:
            lacks[language] = str(error)
    return lacks


class _Judge:
    """An actor. Judges one program at a time, in the order in which they were given."""

    def __init__(self, limits: Limits, options: dict[str, Any]) -> None:
        self._worker = pool.Worker(limits, **options)

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def judge(self, program: Program) -> dict[str, Any]:
        return self._worker.judge(program)

    @ray.method(concurrency_group="end")  # so that it does not wait for the program that runs
    def end(self) -> None:
        self._worker.cancel()


@dataclasses.dataclass(eq=False)
class _Actor:
    handle: Any
    node: str = ""  # its ID, once the actor runs
    given: dict[Future, tuple[bytes, Program]] = dataclasses.field(default_factory=dict)


class _Actors:
    """`count` actors, each replaced when it dies, and the programs they have been given. For one thread."""

    def __init__(self, workers: int | None, limits: Limits, options: dict[str, Any]) -> None:
        self._limits, self._options = limits, options
        self._languages = {""}
        self._lacks: dict[str, dict[str, str]] = {}  # by node ID
        self._actors: list[_Actor] = []
        self._todo: collections.deque[tuple[bytes, Program]] = collections.deque()
        self._ended: queue.SimpleQueue[tuple[_Actor, Future]] = queue.SimpleQueue()
        self._deaths: collections.Counter[bytes] = collections.Counter()
        self._stillborn = 0  # actors in a row that died before they ran
        self._check_hosts()
        self.count = workers or max(1, int(ray.cluster_resources()["CPU"]))

    def _check_hosts(self) -> None:
        """Raises where a host lacks what programs have needed, or there is none. Asks the new ones, busy or not."""
        hosts = _hosts()
        if not hosts:
            raise SandboxError("sandbox: the Ray cluster has no host with a CPU; add one: ray start --address=...")
        ask = ray.remote(_lacks)
        replies = {}
        for node in hosts.keys() - self._lacks.keys():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            replies[node] = ask.options(num_cpus=0, scheduling_strategy=there).remote(self._options["contained"])
        for node, reply in replies.items():
            try:
                self._lacks[node] = ray.get(reply)
            except RayError as error:
                if node in _hosts():  # it has not just been lost
                    raise SandboxError(
                        f"host {hosts[node]}: the check of the host failed; is rerankjax installed there? {error}"
                    ) from None
        for node, name in hosts.items():
            for language in self._languages & self._lacks.get(node, {}).keys():
                raise SandboxError(f"host {name}: {self._lacks[node][language]}")

    def check(self, language: str) -> None:
        if language not in self._languages:
            with contextlib.suppress(SandboxError):  # what this machine lacks does not matter
                toolchains.check(language)
            self._languages.add(language)
            self._check_hosts()

    def start(self) -> None:
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD", "concurrency_groups": {"end": 1}}
        make = ray.remote(num_cpus=1, **options)(_Judge)
        while len(self._actors) < self.count:
            actor = _Actor(make.remote(self._limits, self._options))
            self._actors.append(actor)
            self._watch(actor, actor.handle.node.remote())

    def _watch(self, actor: _Actor, reply: Any) -> Future:
        future: Future = reply.future()
        future.add_done_callback(lambda future: self._ended.put((actor, future)))
        return future

    def submit(self, key: bytes, program: Program) -> None:
        self._todo.append((key, program))
        self._give()

    def _give(self) -> None:
        running = [actor for actor in self._actors if actor.node]
        while self._todo and running:
            actor = min(running, key=lambda actor: len(actor.given))
            if len(actor.given) == GIVEN:
                break
            key, program = self._todo.popleft()
            actor.given[self._watch(actor, actor.handle.judge.remote(program))] = key, program

    def finished(self) -> tuple[bytes, dict[str, Any]]:
        while True:
            try:
                actor, future = self._ended.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if not any(actor.node for actor in self._actors):
                    self._check_hosts()
                continue
            if actor not in self._actors:  # lost, and what it was given is given to others
                continue
            judged = None
            error = future.exception()
            if isinstance(error, RayError) and not isinstance(error, RayTaskError):
                judged = self._lost(actor, error)
            elif actor.node:
                judged = actor.given.pop(future)[0], future.result()
            else:
                actor.node, self._stillborn = future.result(), 0
                self._check_hosts()
            self._give()
            if judged:
                self._deaths.pop(judged[0], None)
                return judged

    def _lost(self, actor: _Actor, error: RayError) -> tuple[bytes, dict[str, Any]] | None:
        """Replaces the actor and takes back what it was given; judges the program that ran if it is to blame."""
        self._actors.remove(actor)
        ray.kill(actor.handle)  # it may only be out of reach
        self._stillborn += not actor.node
        if self._stillborn > 2 * self.count:
            raise SandboxError(f"sandbox: no actor starts in the Ray cluster: {error}")
        given = list(actor.given.values())
        judged = None
        if given and isinstance(error, ActorDiedError | OutOfMemoryError) and actor.node in _hosts():
            key, _ = given[0]
            self._deaths[key] += 1
            if self._deaths[key] == DEATHS:
                del given[0]
                stderr = f"sandbox: the actor died {DEATHS} times while it ran this program: {error}"
                judged = key, {**pool.EMPTY, "stderr": stderr, "verdict": Verdict.SANDBOX_ERROR}
        self._todo.extendleft(reversed(given))
        self.start()
        return judged

    def close(self) -> None:
        if not ray.is_initialized():  # the actors have ended with the connection
            return
        ends = [actor.handle.end.remote() for actor in self._actors if actor.node]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=CLOSE_SECONDS)
        for actor in self._actors:
            ray.kill(actor.handle)
