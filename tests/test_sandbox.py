"""Each misbehaviour is contained, gets the right verdict, and leaves nothing behind."""

import gzip
import itertools
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable

import pytest

from rerankjax import sandbox
from rerankjax.sandbox import Limits, Program, Result, SandboxError, Verdict, box, pool, seccomp

REPOSITORY = pathlib.Path(__file__).parent.parent
DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the repository")

SOURCE = "def f(x):\n    return x + 1\n"
TESTS = "def check(g):\n    assert g(1) == 2\n    assert g(2) == 3\n    return\ncheck(f)\n"
HONEST = Program("py", SOURCE, TESTS)


def run(source: str, tests: str = "", **limits: float) -> Result:
    """The program's result, having seen that an honest one still passes after it in the same box."""
    programs = [Program("py", textwrap.dedent(source), textwrap.dedent(tests)), HONEST]
    results = sorted(sandbox.run(programs, workers=1, limits=Limits(**limits)), key=lambda result: result.index)
    assert results[1].verdict is Verdict.PASSED, results[1]
    return results[0]


def tried(source: str, **limits: float) -> str:
    """Run `source` and return what it printed; it must end by itself."""
    result = run(source, **limits)
    assert result.verdict is Verdict.PASSED, result
    return result.stdout.strip()


def alive(mark: str) -> list[str]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_bytes().decode(errors="replace"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def children(pid: int) -> set[int]:
    try:
        return {int(c) for p in pathlib.Path(f"/proc/{pid}/task").glob("*/children") for c in p.read_text().split()}
    except OSError:
        return set()


def descendants(pid: int) -> set[int]:
    below = children(pid)
    return below.union(*map(descendants, below))


# Verdicts


@pytest.mark.parametrize(
    ("source", "tests", "verdict"),
    [
        (SOURCE, TESTS, Verdict.PASSED),
        (SOURCE + TESTS, "", Verdict.PASSED),
        ("def f(x):\n    return x", TESTS, Verdict.FAILED),
        ("def f(x):\n    return x / 0", TESTS, Verdict.RUNTIME_ERROR),
        ("def f(x): return (", TESTS, Verdict.COMPILE_ERROR),
        ("x = '\\ud800'\nprint('\0')", "", Verdict.COMPILE_ERROR),
        ("import ctypes; ctypes.string_at(0)", "", Verdict.RUNTIME_ERROR),
        ("raise SystemExit(3)", "", Verdict.RUNTIME_ERROR),
        (SOURCE + "TESTS = '''", "'''\n" + TESTS, Verdict.COMPILE_ERROR),  # tests swallowed by a string
    ],
)
def test_verdict(source: str, tests: str, verdict: Verdict) -> None:
    assert run(source, tests).verdict is verdict


def test_result_tells_what_failed() -> None:
    result = run("print('hé')\ndef f(x):\n    return x", TESTS)
    assert result.stdout == "hé\n"
    assert "assert g(1) == 2" in result.stderr
    assert "inside" not in result.stderr  # no frame of ours
    assert (result.exit_code, result.signal) == (1, None)
    assert run("import ctypes; ctypes.string_at(0)").signal == signal.SIGSEGV


def test_cpu_time_is_the_clock() -> None:
    result = run("while True: pass", cpu_seconds=0.5)
    assert result.verdict is Verdict.TIMEOUT
    assert 0.5 < result.cpu_seconds < 1.5
    assert run("import time; time.sleep(1)", cpu_seconds=0.5).verdict is Verdict.PASSED


def test_wall_time_ends_what_only_sleeps() -> None:
    result = run("import time; time.sleep(60)", wall_seconds=0.5)
    assert result.verdict is Verdict.TIMEOUT
    assert result.cpu_seconds < 0.5 <= result.wall_seconds < 5


def test_cpu_time_of_all_processes_counts() -> None:
    spin = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    assert run(spin, cpu_seconds=2.0).verdict is Verdict.TIMEOUT


def test_stdin_is_empty_unless_given() -> None:
    assert tried("import sys\nprint(repr(sys.stdin.read()))") == "''"
    assert "EOFError" in run("input()").stderr


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("n = int(input()); print(n / 3, n)", Verdict.PASSED),
        ("n = int(input()); print(n / 3 + 1e-9, n); raise SystemExit", Verdict.PASSED),
        ("n = int(input()); print(n / 3 + 1e-3, n)", Verdict.FAILED),
        ("n = int(input()); print(n / 3, n, n)", Verdict.FAILED),
        ("n = int(input()); print(n / 3, n); raise SystemExit(1)", Verdict.RUNTIME_ERROR),
        ("print(0)", Verdict.FAILED),
    ],
)
def test_standard_output_decides_where_it_is_expected(source: str, verdict: Verdict) -> None:
    program = Program("py", source, stdin="10\n", expected_output="3.3333333333\n10\n")
    assert [result.verdict for result in sandbox.run([program], workers=1)] == [verdict]


def test_bad_input_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cpu_seconds is 0"):
        Limits(cpu_seconds=0)
    with pytest.raises(ValueError, match="workers is 0"):
        sandbox.run([], workers=0)
    with pytest.raises(ValueError, match="program 1: language is 'cobol'; use one of py"):
        list(sandbox.run([HONEST, Program("cobol", "")], workers=1))


# Forged passes: every one of these exits with 0 or hides its tests' failure.

FORGED = {
    "exit": "import sys; sys.exit(0)",
    "_exit": "import os; os._exit(0)",
    "exit in the function": "def f(x):\n    raise SystemExit(0)",
    "prints success": "print('passed'); print('OK'); raise SystemExit",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(x): return 0",
    "excepthook": "import sys\nsys.excepthook = lambda *a: None\ndef f(x): return 0",
    "signal handler": "import os, signal\nsignal.signal(signal.SIGTERM, lambda *a: os._exit(0))\n"
    "def f(x): os.kill(os.getpid(), signal.SIGTERM)",
    "thread": "import os, threading\ndef f(x):\n"
    "    threading.Thread(target=os._exit, args=(0,)).start()\n    while 1: pass",
    "always equal": "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "always equal int": "class A(int):\n    __eq__ = lambda self, other: True\ndef f(x): return A()",
    "no exec": "import builtins\nbuiltins.exec = lambda *a: None",
    "trace over asserts": """
        import sys
        def trace(frame, event, arg):
            if event == 'line' and frame.f_code.co_name == 'check' and frame.f_lineno < 4:
                frame.f_lineno = 4
                frame.f_trace = None
            return trace
        sys.settrace(trace)
        def f(x): return 0""",
    "writes to the status pipe": "import os\nos.write(3, b'passed'); os._exit(0)",
    "steals the nonce": """
        import sys, os
        frame = sys._getframe()
        while 'report' not in frame.f_locals: frame = frame.f_back
        frame.f_locals['report']('passed')
        os._exit(0)""",
    "reads the answers": """
        import linecache, re
        def f(x): return int(re.search(rf'g\\({x}\\) == \\(?(\\d+)', ''.join(linecache.getlines('tests.py')))[1])""",
}


@pytest.mark.parametrize("source", FORGED.values(), ids=FORGED.keys())
def test_forged_pass_is_no_pass(source: str) -> None:
    assert run(source, TESTS).verdict in (Verdict.FAILED, Verdict.RUNTIME_ERROR)


# Of these tests a lambda goes to the program, so they have to run in its process.
SHARING = "assert apply(lambda x: x + 1, 1) == 2\nassert apply(lambda x: x + 1, 2) == 3\n"


def test_a_pass_says_what_stands_behind_it() -> None:
    apply = "def apply(f, x):\n    return f(x)\n"
    programs = [HONEST, Program("py", SOURCE + TESTS), Program("py", apply, SHARING), Program("py", apply)]
    found = {}
    for control in (True, "every", False):
        results = sorted(sandbox.run(programs, workers=1, control=control), key=lambda result: result.index)
        assert {result.verdict for result in results} == {Verdict.PASSED}
        found[control] = [str(result.control) for result in results]
    assert found[True] == ["apart", "apart", "one", "none"]
    assert found["every"] == ["apart", "apart", "every", "none"]
    assert found[False] == ["apart", "apart", "none", "none"]


def test_control_of_every_test_catches_who_cheats_on_one() -> None:
    equal = "class A(int):\n    __eq__ = lambda self, other: True\n"
    cheats = [equal + f"def apply(f, x):\n    return A() if x == {x} else f(x)\n" for x in (1, 2)]
    programs = [Program("py", source, SHARING) for source in cheats]
    every, none = (
        sorted(sandbox.run(programs, workers=1, control=control), key=lambda result: result.index)
        for control in ("every", False)
    )
    assert [result.verdict for result in none] == [Verdict.PASSED] * 2
    assert [result.verdict for result in every] == [Verdict.CHEATED] * 2
    seen = Program("py", FORGED["always equal"], TESTS)
    for control, verdict in (("every", Verdict.CHEATED), (True, Verdict.FAILED)):
        assert [r.verdict for r in sandbox.run([seen], workers=1, control=control)] == [verdict]
    with pytest.raises(ValueError, match="control is 'each'; it must be True, False or 'every'"):
        sandbox.run(programs, control="each")


@needs_data
def test_no_honest_program_is_flagged() -> None:
    with open(DATA / "multipl_e" / "humaneval-py.jsonl") as file:
        rows = [json.loads(line) for line in file]
    programs = [
        Program("py", row["prompt"] + row["canonical_solution"], f"{row['tests']}\ncheck({row['entry_point']})\n")
        for row in rows
    ]
    missed = [(rows[r.index]["name"], r) for r in sandbox.run(programs) if r.verdict is not Verdict.PASSED]
    assert not missed
    assert len(programs) == 164


@needs_data
def test_verdicts_agree_with_multipl_e() -> None:
    with gzip.open(DATA / "multipl_e" / "programs.jsonl.gz", "rt") as file:
        rows = [row for row in map(json.loads, file) if row["language"] == "py"]
    results = list(sandbox.run(Program("py", row["program"]) for row in rows))
    differ = [
        (rows[r.index]["name"], rows[r.index]["evaluator_status"], r)
        for r in results
        if (r.verdict is Verdict.PASSED) != (rows[r.index]["evaluator_status"] == "OK")
    ]
    assert not differ
    assert sorted(r.index for r in results) == list(range(len(rows)))


# Containment


def test_fork_bomb() -> None:
    start = time.monotonic()
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert run(bomb, cpu_seconds=1, processes=32).verdict is Verdict.TIMEOUT
    assert time.monotonic() - start < 10
    count = "import os, time\nn = 0\ntry:\n    while True:\n        if not os.fork(): time.sleep(60)\n        n += 1\n"
    assert int(tried(count + "except OSError: print(n)", processes=32)) < 32


def test_memory_of_one_process() -> None:
    assert run("x = bytearray(1 << 30)", memory_bytes=256 << 20).verdict is Verdict.MEMORY_LIMIT


def test_memory_of_six_processes_together() -> None:
    source = "import os, time\nfor _ in range(6):\n    if not os.fork(): x = bytearray(b'x') * (100 << 20); break\n"
    hide = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"  # not dumpable: its memory is not for all to see
    for start in ("", hide):
        result = run(start + source + "time.sleep(20)", memory_bytes=256 << 20)
        assert result.verdict is Verdict.MEMORY_LIMIT
        assert result.wall_seconds < 5


def test_one_large_file_and_many_files() -> None:
    large = run("open('a', 'wb').write(bytes(2 << 20))", file_bytes=1 << 20)
    assert "File too large" in large.stderr
    many = "i = 0\nwhile True:\n    i += 1\n    open(f'/{d}/{{i}}', 'wb').write(bytes(1 << 19))"
    for directory in ("tmp", "dev/shm"):
        result = run(many.replace("{d}", directory).replace("{{", "{").replace("}}", "}"), tmp_bytes=4 << 20)
        assert "No space left" in result.stderr
    # Where Python lies below /tmp, as in a clone there, its place is in sight.
    seen = sorted({"program.py", *(path.split("/")[2] for path in box.kept())})
    assert tried("import os\nprint(sorted(os.listdir('/tmp') + os.listdir('/dev/shm')))") == str(seen)


def test_endless_output_is_cut_soon() -> None:
    result = run("while True: print('x' * 1000)")
    assert result.verdict is Verdict.OUTPUT_LIMIT
    assert result.wall_seconds < 5
    assert len(result.stdout) == 4096


def test_sees_nothing_of_the_host(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(8)
    monkeypatch.setenv("SANDBOX_TEST_SECRET", secret)
    (tmp_path / "secret").write_text(secret)
    paths = [
        "/etc/machine-id",
        "/etc/shadow",
        str(tmp_path / "secret"),
        __file__,
        "/root/.bashrc",
        "/sys/kernel",
        "/home",
    ]
    assert tried(f"import os\nprint([p for p in {paths!r} if os.path.exists(p)])") == "[]"
    assert tried("print(*(line.split(':')[0] for line in open('/etc/passwd')))") == "root nobody"  # the box's own
    source = f"""
        import glob, os
        for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
            assert {secret!r}[1:] not in open(path).read()
        print(sorted(name for name in os.listdir('/proc') if name.isdigit()), sorted(os.environ))"""
    assert tried(source) == f"['1'] {sorted([*box.ENVIRONMENT, 'PWD'])}"


def test_writes_nothing_outside(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    source = f"""
        import os
        os.symlink({str(target)!r}, 'link')
        paths = '/usr/x /x /dev/x /etc/x /sandbox/x /sandbox/rerankjax/sandbox/inside/server.py /proc/self/uid_map '
        paths += 'link /proc/self/oom_score_adj /proc/sys/kernel/hostname /proc/sysrq-trigger '
        for path in (paths + {str(target)!r}).split():
            try: open(path, 'w').write('1')
            except OSError: continue
            print(path)"""
    assert tried(source) == ""
    assert target.read_text() == "untouched"


def test_reaches_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        source = f"""
            import socket
            try: socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)
            except OSError as error: print(type(error).__name__)
            for family in (socket.AF_VSOCK, socket.AF_NETLINK, socket.AF_PACKET):
                try: socket.socket(family, socket.SOCK_DGRAM)
                except OSError as error: print(error.errno)"""
        assert tried(source).split() == ["ConnectionRefusedError", "97", "97", "97"]
        with pytest.raises(BlockingIOError):
            server.accept()


def test_kills_only_itself() -> None:
    source = """
        import os, signal
        for pid in (os.getppid(), 1, 2, 3, -1):
            for number in (signal.SIGKILL, signal.SIGTERM):
                try: os.kill(pid, number)
                except OSError: pass
        print('here')"""
    assert tried(source) == "here"


def test_refused_system_calls() -> None:
    source = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        refused = {
            'ptrace': lambda: libc.ptrace(16, 1, 0, 0),
            'process_vm_readv': lambda: libc.process_vm_readv(1, 0, 0, 0, 0, 0),
            'unshare': lambda: libc.unshare(0x10000000), 'setns': lambda: libc.setns(0, 0),
            'mount': lambda: libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, 0), 'umount': lambda: libc.umount2(b'/proc', 2),
            'chroot': lambda: libc.chroot(b'/tmp'), 'pivot_root': lambda: libc.syscall(155, b'/tmp', b'/tmp'),
            'memfd_create': lambda: libc.memfd_create(b'x', 0), 'shmget': lambda: libc.shmget(0, 4096, 0o1600),
            'io_uring_setup': lambda: libc.syscall(425, 1, 0), 'bpf': lambda: libc.syscall(321, 0, 0, 0),
            'clone into a user namespace': lambda: libc.syscall(56, 0x10000011, 0, 0, 0, 0),
        }
        for name, call in refused.items():
            ctypes.set_errno(0)
            assert call() == -1 and ctypes.get_errno() == 1, (name, ctypes.get_errno())
        for number in (435, 463, 1000, 0x40000000 + 39):  # clone3, two not yet known, one of x32
            assert libc.syscall(number, 0, 0) == -1 and ctypes.get_errno() == 38, number
        assert libc.setuid(1) == -1 and libc.sethostname(b'x', 1) == -1
        print('refused')"""
    if os.uname().machine != "x86_64":
        pytest.skip("the system call numbers are those of x86_64")
    assert tried(source) == "refused"


def test_daemon_does_not_outlive_the_verdict() -> None:
    mark = f"{secrets.randbelow(10**9)}.{secrets.randbelow(10**9)}"
    source = f"""
        import os, signal, subprocess, time
        if not os.fork():
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if not os.fork():
                subprocess.Popen(['/usr/bin/sleep', '{mark}'], start_new_session=True)
                open('/dev/shm/left', 'w').write('x')
                while True: time.sleep(1)
            os._exit(0)
        while not os.path.exists('/dev/shm/left'): time.sleep(.01)
        print('started')"""
    results = sandbox.run([Program("py", textwrap.dedent(source)), HONEST], workers=1, control=False)
    first = next(results)
    assert first.stdout == "started\n", first
    assert alive(mark) == []  # while the box itself still runs
    results.close()


def test_honest_programs_may_use_processes_and_threads() -> None:
    source = """
        import concurrent.futures, multiprocessing, subprocess, tempfile, threading
        if __name__ == '__main__':
            with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, -2]))
            with concurrent.futures.ThreadPoolExecutor(2) as pool: print(list(pool.map(abs, [-3])))
            with tempfile.TemporaryDirectory() as path: open(path + '/x', 'w').write('x')
            print(subprocess.run(['echo', 'hello'], capture_output=True, text=True).stdout)"""
    assert tried(source).split("\n") == ["[1, 2]", "[3]", "hello"]


@pytest.mark.alone
def test_nothing_is_left_behind() -> None:
    def state() -> tuple[object, ...]:
        return (
            pathlib.Path("/proc/self/mountinfo").read_text(),
            pathlib.Path("/proc/sysvipc/shm").read_text(),
            sorted(os.listdir("/dev/shm")),
            len(os.listdir("/proc/self/fd")),
            descendants(os.getpid()),
        )

    sandbox.check()
    before = state()
    messy = Program("py", "import os\nopen('x', 'w'); open('/dev/shm/x', 'w'); os.fork()\nwhile True: pass")
    list(sandbox.run([messy, *[HONEST] * 3, messy], workers=2, limits=Limits(cpu_seconds=0.2)))
    assert state() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: every other test here has run as an ordinary user")
def test_works_as_an_ordinary_user() -> None:
    script = """
        from rerankjax.sandbox import Limits, Program, run
        bomb = "import os\\nwhile True:\\n    try: os.fork()\\n    except OSError: pass"
        programs = [Program("py", s) for s in ("x = 1", "assert 0", bomb)]
        results = sorted(run(programs, workers=1, limits=Limits(cpu_seconds=1)), key=lambda r: r.index)
        print([str(r.verdict) for r in results])"""
    with tempfile.TemporaryDirectory() as directory:  # the checkout may lie where only root can read
        os.chmod(directory, 0o755)
        shutil.copytree(REPOSITORY / "rerankjax" / "sandbox", f"{directory}/rerankjax/sandbox")
        command = ["/usr/bin/python3", "-B", "-c", textwrap.dedent(script)]
        done = subprocess.run(
            command, cwd=directory, user=65534, group=65534, extra_groups=[], env={}, capture_output=True, text=True
        )
    assert done.stdout == "['passed', 'failed', 'timeout']\n", done.stderr


# Failing closed


def test_missing_bubblewrap_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pool.check.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxError, match=r"bwrap is not on PATH; install it: apt-get install bubblewrap"):
        sandbox.run([HONEST])


def test_refused_namespaces_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pool.check.cache_clear()
    monkeypatch.setattr(box, "CAPABILITIES", ())
    with pytest.raises(SandboxError, match=r"the box does not start: [^$]*not permitted[^$]*user namespaces"):
        sandbox.run([HONEST])


def test_a_filter_that_lets_through_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pool.check.cache_clear()
    monkeypatch.setattr(seccomp, "bpf", lambda: bytes.fromhex("06000000 0000ff7f"))  # return ALLOW
    with pytest.raises(SandboxError, match="the seccomp filter lets through"):
        sandbox.run([HONEST])


# The pool


def test_a_box_that_dies_is_replaced_and_its_program_run_again() -> None:
    results = sandbox.run([HONEST, Program("py", "import time; time.sleep(1)")], workers=1)
    assert next(results).verdict is Verdict.PASSED
    # Its outermost process: a program that runs already is a fork of the server, and looks like it.
    boxed = [pid for pid in children(os.getpid()) if "server" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(boxed) == 2  # the program's, and that of its tests
    for pid in boxed:
        os.kill(pid, signal.SIGKILL)
    assert next(results).verdict is Verdict.PASSED
    assert next(results, None) is None


def test_a_program_under_which_boxes_die_is_a_sandbox_error(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def dies(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise box.BoxDiedError("gone")

    monkeypatch.setitem(pool.JUDGES, "py", dies)
    (result,) = sandbox.run([HONEST], workers=1)
    assert result.verdict is Verdict.SANDBOX_ERROR
    assert "died 3 times" in result.stderr
    assert len(calls) == 3


def test_identical_programs_run_once() -> None:
    slow = Program("py", "import time; time.sleep(.1)")
    results = list(sandbox.run([slow, HONEST, *[slow] * 9], workers=2))
    assert sorted(result.index for result in results) == list(range(11))
    assert len({result.wall_seconds for result in results if result.index != 1}) == 1


def test_an_endless_input_is_taken_as_results_are() -> None:
    taken = itertools.count()
    programs = (Program("py", f"x = {next(taken)}") for _ in itertools.count())
    results = sandbox.run(programs, workers=2)
    assert len(list(itertools.islice(results, 20))) == 20
    assert next(taken) <= 20 + 4 * 2 + 1
    results.close()
    assert descendants(os.getpid()) == set()


def test_closing_ends_what_runs() -> None:
    results = sandbox.run([HONEST, Program("py", "import time; time.sleep(50)")], workers=2)
    assert next(results).verdict is Verdict.PASSED
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 5
    assert descendants(os.getpid()) == set()


def test_nothing_runs_on_when_this_process_is_killed() -> None:
    mark = f"{secrets.randbelow(10**9)}.{secrets.randbelow(10**9)}"
    source = f"import subprocess\nprint(subprocess.run(['sleep', '{mark}']))"
    script = f"from rerankjax import sandbox\nlist(sandbox.run([sandbox.Program('py', {source!r})], workers=1))"
    runner = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY)
    wait_until(lambda: len(alive(mark)) > 1)  # the runner itself has it on its command line
    runner.kill()
    runner.wait()
    wait_until(lambda: not alive(mark))


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
