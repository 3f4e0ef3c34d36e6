"""Nothing a program does ends a run, reaches the next program or leaves its limits; honest oddities pass."""

import random
import time
from collections.abc import Iterator

import pytest

from rerankjax import sandbox
from rerankjax.sandbox import Control, Limits, Program, Result, Verdict, box, cgroup
from tests.test_sandbox_languages import LANGUAGES, SHAPES, honest, program, run

# What a hostile program does, in each language: {data} is bytes in hex, {signal} and {pid} are numbers.
TELL = {
    "py": "for d in range(3, 256):\n    try: __import__('os').write(d, bytes.fromhex('{data}'))\n    except OSError: pass\n",
    "sh": "for d in /proc/$BASHPID/fd/*; do (printf '{escaped}' > $d) 2> /dev/null; done\n",
    "php": "foreach (range(3, 255) as $d) @file_put_contents(\"php://fd/$d\", hex2bin('{data}'));\n",
    "cpp": 'for (int d = 3; d < 256; d++) if (write(d, "{escaped}", {length}) < 0) continue;\n',
    "js": "for (let d = 3; d < 256; d++) try {{ require('fs').writeSync(d, Buffer.from('{data}', 'hex')); }} catch {{}}\n",
    "ts": "for (let d = 3; d < 256; d++) try {{ eval('require')('fs').writeSync(d, eval('Buffer').from('{data}', 'hex')); }} catch {{}}\n",
    "java": 'for (int d = 3; d < 256; d++) try (var o = new java.io.FileOutputStream("/proc/self/fd/" + d, true)) '
    '{{ o.write(new java.math.BigInteger("7{data}", 16).toByteArray()); }} catch (Exception e) {{ }}\n',
    "cs": 'for (int d = 3; d < 256; d++) try {{ using (var o = System.IO.File.OpenWrite("/proc/self/fd/" + d)) '
    'o.Write(System.Numerics.BigInteger.Parse("7{data}", System.Globalization.NumberStyles.HexNumber).ToByteArray(), 0, 1); }} '
    "catch (Exception) {{ }}\n",
}
KILL = {
    "py": "try: __import__('os').kill({pid}, {signal})\nexcept OSError: pass\n",
    "sh": "kill -{signal} {pid} 2> /dev/null\n",
    "php": "@FFI::cdef('int kill(int p, int s);', 'libc.so.6')->kill({pid}, {signal});\n",
    "cpp": "kill({pid}, {signal});\n",
    "js": "try {{ process.kill({pid}, {signal}); }} catch {{}}\n",
    "ts": "try {{ eval('process').kill({pid}, {signal}); }} catch {{}}\n",
    "java": 'try {{ new ProcessBuilder("/bin/sh", "-c", "kill -{signal} {pid}").start().waitFor(); }} catch (Exception e) {{ }}\n',
    "cs": 'System.Diagnostics.Process.Start("/bin/sh", "-c \'kill -{signal} {pid}\'").WaitForExit();\n',
}
CLOSE = {
    "py": "__import__('os').closerange(0, 256)\n",
    "sh": 'for d in {{0..255}}; do eval "exec $d>&-" 2> /dev/null; done\n',
    "php": "FFI::cdef('int close_range(unsigned a, unsigned b, int f);', 'libc.so.6')->close_range(0, 255, 0);\n",
    "cpp": "for (int d = 0; d < 256; d++) {{ fchmod(d, 0); close(d); }}\n",
    "js": "for (const d of [1, 2, 3, 200, 201]) try {{ require('fs').fchmodSync(d, 0); require('fs').closeSync(d); }} catch {{}}\n",
    "ts": "for (const d of [1, 2, 3, 200, 201]) try {{ eval('require')('fs').fchmodSync(d, 0); }} catch {{}}\n",
    "java": "System.out.close(); System.err.close();\n",
    "cs": "Console.Out.Close(); Console.Error.Close();\n",
}
EXIT = {
    "py": "__import__('os')._exit({pid} & 255)\n",
    "sh": "exit {signal}\n",
    "php": "exit({signal});\n",
    "cpp": "_exit({signal});\n",
    "js": "process.reallyExit({signal});\n",
    "ts": "eval('process').reallyExit({signal});\n",
    "java": "Runtime.getRuntime().halt({signal});\n",
    "cs": "Environment.Exit({signal});\n",
}
# A wrong body that does {actions} in the call, or when the program is loaded.
IN_THE_CALL = {
    "py": "    {actions}\n    return 0\n",
    "sh": "    {actions}\n    echo 0\n",
    "php": "    {actions}\n    return 0; }}\n",
    "cpp": "    {actions}\n    return 0;\n",
    "js": "    {actions}\n    return 0; }}\n",
    "ts": "    {actions}\n    return 0; }}\n",
    "java": "        {actions}\n        return 0;\n",
    "cs": "        {actions}\n        return 0;\n",
}
AT_THE_START = {
    "py": "    return 0\n{actions}\n",
    "sh": "    echo 0\n}}\n{actions}\ng() {{\n    :\n",
    "php": "    return 0; }}\n{actions}\n",
    "cpp": "    return 0;\n}}\n__attribute__((constructor)) void start() {{\n{actions}\n",
    "js": "    return 0; }}\n{actions}\n",
    "ts": "    return 0; }}\n{actions}\n",
    "java": "        return 0;\n    }}\n    static {{\n{actions}\n",
    "cs": "        return 0;\n    }}\n    static Problem() {{\n{actions}\n",
}


def hostile(language: str, rng: random.Random) -> Program:
    """A program that passes no test: noise for a body, or noise and signals at some step of the protocol."""
    if rng.random() < 0.2:
        return program(language, rng.randbytes(rng.randrange(300)).decode("latin-1"))
    actions = ""
    for _ in range(rng.randrange(1, 4)):
        data = rng.choice([b"\0", b"[]\n", b"?", b"passed", rng.randbytes(4), rng.randbytes(rng.randrange(1, 2000))])
        if rng.random() < 0.05:
            data = data * (20_000 // len(data))
        escaped = "".join(f"\\{byte:03o}" for byte in data)
        numbers = {"signal": rng.randrange(1, 65), "pid": rng.choice([1, 1, 1, 2, 3, 0, -1])}
        text = rng.choice([TELL, TELL, KILL, KILL, CLOSE, EXIT])[language]
        actions += text.format(data=data.hex(), escaped=escaped, length=len(data), **numbers)
    if language == "py":
        body = rng.choice([IN_THE_CALL, AT_THE_START])
        actions = actions.replace("\n", "\n    ") if body is IN_THE_CALL else actions
        return program(language, body[language].format(actions=actions))
    return program(language, rng.choice([IN_THE_CALL, AT_THE_START])[language].format(actions=actions))


def fuzz(count: int, shares: dict[str, int], seed: int) -> None:
    """`count` hostile programs, each between honest ones; all honest ones pass, and no hostile one does."""
    rng = random.Random(seed)
    languages = rng.choices(list(shares), list(shares.values()), k=count)

    def programs() -> Iterator[Program]:
        for number, language in enumerate(languages):
            yield hostile(language, rng)
            comment = f"{'#' if language in ('py', 'sh') else '//'} {number}\n"
            prompt, body, tests = SHAPES[language]
            yield Program(language, f"{prompt}{comment}{body}", f"\n{tests}")  # no two are the same

    judged: dict[int, Result] = {}
    for result in sandbox.run(programs(), workers=2, limits=Limits(cpu_seconds=5, wall_seconds=10)):
        judged[result.index] = result
    assert sorted(judged) == list(range(2 * count))
    assert [r for r in judged.values() if r.index % 2 == 1 and r.verdict is not Verdict.PASSED] == []
    assert [
        r for r in judged.values() if r.index % 2 == 0 and r.verdict in (Verdict.PASSED, Verdict.SANDBOX_ERROR)
    ] == []


def test_hostile_programs_between_honest_ones() -> None:
    fuzz(80, {"py": 20, "php": 20, "sh": 20, "js": 8, "ts": 4, "java": 4, "cs": 4, "cpp": 2}, seed=1)


@pytest.mark.long
def test_ten_thousand_hostile_programs_between_honest_ones() -> None:
    fuzz(
        10_000, {"py": 4000, "php": 3000, "sh": 1500, "js": 700, "ts": 300, "java": 200, "cs": 200, "cpp": 100}, seed=2
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_signal_to_every_process(language: str) -> None:
    signals = (2, 9, 15, 17, 19) if language in ("cpp", "java", "cs", "js", "ts") else range(1, 65)
    body = "".join(KILL[language].format(pid=pid, signal=signal) for signal in signals for pid in (1, 2))
    body = body.replace("\n", "\n    ") if language == "py" else body
    (result,) = run(program(language, IN_THE_CALL[language].format(actions=body)), cpu_seconds=5, wall_seconds=10)
    assert result.verdict not in (Verdict.PASSED, Verdict.SANDBOX_ERROR), result


def test_what_a_compiler_makes_of_java_may_be_much() -> None:
    name = "A" * 300
    many = "    }\n" + "".join(f"    static class C{i} {{ }}\n" for i in range(4200)) + "    static void g() {\n"
    long, classes = run(
        program("java", f"        return 0;\n    }}\n    static class {name} {{\n"),
        program("java", SHAPES["java"][1] + many),
    )
    assert long.verdict is not Verdict.SANDBOX_ERROR, long
    assert classes.verdict is Verdict.PASSED, classes


@pytest.mark.parametrize("language", ["ts", "java", "cs"])
def test_a_source_that_ends_the_compiler_does_not_compile(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_source = box.Box.compile

    def dies(self: box.Box, source: bytes) -> dict:
        if b"deadly" in source or everything:
            self.close()
            raise box.BoxDiedError("out of memory")
        return compile_source(self, source)

    monkeypatch.setattr(box.Box, "compile", dies)
    deadly = Program(language, honest(language).source, f"// deadly\n{honest(language).tests}")
    everything = False
    assert run(deadly)[0].verdict is Verdict.COMPILE_ERROR
    everything = True  # so it is no fault of the program's
    assert [result.verdict for result in sandbox.run([deadly], workers=1)] == [Verdict.SANDBOX_ERROR]


# Sizes


def test_what_a_program_tells_may_be_long() -> None:
    long = "    return [x].concat(new Array(200000).fill('abc')); }\n"
    tests = (
        SHAPES["js"][2]
        .replace("candidate(1),2", "candidate(1).length,200001")
        .replace("candidate(2),3", "candidate(2)[9],'abc'")
    )
    given = [program("js", long), Program("js", SHAPES["js"][0] + long, f"\n{tests}")]
    endless = "    const b = Buffer.alloc(1 << 20, 91); for (;;) require('fs').writeSync(200, b); }\n"
    nested = "    let a = []; for (let i = 0; i < 3000; i++) a = [a]; return a; }\n"
    for number, body in enumerate((endless, nested)):
        given.append(program("js", f"{body}// {number}\n"))
    verdicts = [result.verdict for result in run(*given, cpu_seconds=5, wall_seconds=10)]
    assert verdicts[1] is Verdict.PASSED
    assert not {Verdict.PASSED, Verdict.SANDBOX_ERROR} & {*verdicts[:1], *verdicts[2:]}


@pytest.mark.parametrize("language", LANGUAGES)
def test_sizes_have_limits_with_a_verdict_of_their_own(language: str) -> None:
    prompt, body, tests = SHAPES[language]
    space = "\n" * (5 << 20)
    (result,) = run(Program(language, prompt + body + space, tests))
    assert result.verdict is Verdict.INPUT_LIMIT, result
    assert "source_bytes" in result.stderr
    (result,) = run(Program(language, "", stdin="x" * 2000, expected_output=""), stdin_bytes=1000)
    assert result.verdict is Verdict.INPUT_LIMIT, result
    assert "stdin_bytes" in result.stderr


COUNTS = {
    "py": "import sys\nprint(len(sys.stdin.read()))",
    "sh": "wc -c",
    "php": "<?php\n$n = 0; while (!feof(STDIN)) $n += strlen(fread(STDIN, 1 << 20)); echo $n;",
    "cpp": '#include <cstdio>\nint main() { long n = 0; while (getchar() != EOF) n++; printf("%ld", n); }',
    "js": "console.log(require('fs').readFileSync(0).length);",
    "ts": "declare var require: any;\nconsole.log(require('fs').readFileSync(0).length);",
    "java": "class Main { public static void main(String[] a) throws Exception { System.out.println(System.in.readAllBytes().length); } }",
    "cs": "using System;\nclass A { static void Main() { var s = Console.OpenStandardInput(); var b = new byte[1 << 20]; int n = 0, g; "
    "while ((g = s.Read(b, 0, b.Length)) > 0) n += g; Console.WriteLine(n); } }",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_standard_input_of_fifty_million_bytes(language: str) -> None:
    given = Program(language, COUNTS[language], stdin="x" * 50_000_000, expected_output="50000000")
    assert [result.verdict for result in sandbox.run([given], workers=1)] == [Verdict.PASSED]


def test_bytes_are_no_source() -> None:
    with pytest.raises(TypeError, match="Program: source must be str, got bytes; decode it first"):
        Program("py", b"x = 1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cpu_seconds is inf"):
        Limits(cpu_seconds=float("inf"))


# Tests of no known form, in the program's own process

FREE = {  # a program, its tests, and what makes it pass wrongly
    "php": (
        "<?php\nfunction f($x) { return %s; }\n",
        "if (f(1) !== 2) { throw new Exception('no'); }\n",
        "0; }\nreturn;\nfunction g() { return 0",
    ),
    "js": (
        "function f(x) { return %s; }\n",
        "if (f(1) !== 2) throw new Error('no');\n",
        "0; }\nreturn;\nfunction g() { return 0",
    ),
    "cpp": (
        "long f(long x) { return %s; }\n",
        "int main() { if (f(1) != 2) throw 1; }\n",
        "0; }\n#define if(x) if (false)\nint g() { return 0",
    ),
    "cs": (
        "using System;\nclass P { static A F(A x) { return x; } %s\n",
        "static void Main() { if (F(1) != 2) throw new Exception(); } }\n",
        "class A { public static implicit operator A(int x) { return new A(); } public static bool operator ==(A a, A b) { return true; } "
        "public static bool operator !=(A a, A b) { return false; } }",
    ),
    "ts": (
        "function f(x: number): number { return %s; }\n",
        "if (f(1) !== 2) throw new Error('no');\n",
        "0; }\neval('process').on('uncaughtException', () => {});\nfunction g() { return 0",
    ),
    "java": (
        "class Problem { static long f(long x) { return %s; }\n",
        "public static void main(String[] a) { if (f(1) != 2) throw new Error(); } }\n",
        "0; } static { Runtime.getRuntime().addShutdownHook(new Thread(() -> Runtime.getRuntime().halt(0))); } static long g() { return 0",
    ),
    "sh": ("f() { %s; }\n", '[ "$(f 1)" = "2" ] || exit 1\n', "echo 0; }; exit() { :; }; g() { :"),
}


FREE_TOO = {  # more that an examination found
    "a patched util": (
        "js",
        "require('util').isDeepStrictEqual = () => true;\nfunction f(x) { return 0; }\n",
        "const util = require('util');\nif (!util.isDeepStrictEqual(f(1), 2)) throw new Error('no');\n",
    ),
    "no throw": (
        "cpp",
        "long f(long x) { return 0; }\n#define throw (void)\n",
        "int main() { if (f(1) != 2) throw 1; }\n",
    ),
}


@pytest.mark.parametrize(("language", "source", "tests"), FREE_TOO.values(), ids=FREE_TOO.keys())
def test_a_control_catches_these_too(language: str, source: str, tests: str) -> None:
    assert [r.verdict for r in sandbox.run([Program(language, source, tests)], workers=1)] == [Verdict.CHEATED]


@pytest.mark.parametrize("language", FREE)
def test_a_control_where_an_expected_value_can_be_found(language: str) -> None:
    source, tests, forged = FREE[language]
    right = {"php": "$x + 1", "sh": "echo $(($1 + 1))"}.get(language, "x + 1")
    given = [Program(language, source % forged, tests)]
    if language != "cs":
        given.append(Program(language, source % right, tests))
    results = sorted(sandbox.run(given, workers=1), key=lambda result: result.index)
    assert results[0].verdict not in (Verdict.PASSED, Verdict.SANDBOX_ERROR), results[0]
    for result in results[1:]:
        assert (result.verdict, result.control) == (Verdict.PASSED, Control.ONE), result


def test_a_pass_without_a_control_says_so() -> None:
    given = [Program("js", "const x = 1;"), Program("py", "x = 1"), Program("sh", "true", "\nfalse || true\n")]
    for result in sandbox.run(given, workers=1):
        assert (result.verdict, result.control) == (Verdict.PASSED, Control.NONE), result


def test_a_program_that_is_not_text_is_no_pass() -> None:
    assert run(program("php", "    return '\ud800'; }\n"))[0].verdict is Verdict.FAILED
    late = "    return $x + 1; }\nregister_shutdown_function(function () { throw new Exception('late'); });\n"
    assert run(program("php", late))[0].verdict is not Verdict.PASSED


def cgroups_can_be_made() -> bool:
    group = cgroup.make()
    if group is not None:
        cgroup.remove(group)
    return group is not None


# Nothing reaches the next program


def test_ports_are_free_for_the_next_program() -> None:
    body = """    import socket
    with socket.create_server(("127.0.0.1", 8123)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.close()
        assert client.recv(1) == b""
    return x + 1
"""
    given = [program("py", f"{body}# {i}\n") for i in range(3)]
    assert [result.verdict for result in sandbox.run(given, workers=1)] == [Verdict.PASSED] * 3


def test_pipes_are_as_they_were() -> None:
    spoils = """    import fcntl, os
    for fd in (0, 1, 2, 3):
        try: fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
        except OSError: pass
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
        try: os.fchmod(fd, 0)
        except OSError: pass
    return x + 1
"""
    looks = """    import fcntl, os
    for fd in (1, 2, 3):
        assert fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) == 65536
        assert os.fstat(fd).st_mode & 0o777 == 0o600
    for fd in (0, 1, 2, 3):
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    return x + 1
"""
    given = [program("py", spoils), program("py", looks)]
    assert [result.verdict for result in sandbox.run(given, workers=1)] == [Verdict.PASSED] * 2


def test_page_tables_count_as_memory() -> None:
    code = """using System;
using System.Runtime.InteropServices;
class A {
    [DllImport("libc")] static extern IntPtr mmap(IntPtr a, IntPtr n, int p, int f, int d, IntPtr o);
    static void Main() {
        long size = 1L << 37;
        IntPtr start = mmap(IntPtr.Zero, (IntPtr) size, 1, 0x4022, -1, IntPtr.Zero);
        long sum = 0;
        for (long at = 0; at < size; at += 1 << 21) sum += Marshal.ReadByte((IntPtr) ((long) start + at));
        System.Threading.Thread.Sleep(3000);
        Console.WriteLine(sum);
    }
}
"""
    (result,) = sandbox.run(
        [Program("cs", code, expected_output="0")], workers=1, limits=Limits(memory_bytes=128 << 20, cpu_seconds=30)
    )
    assert result.verdict is Verdict.MEMORY_LIMIT, result


@pytest.mark.skipif(not cgroups_can_be_made(), reason="no cgroup of version 2 can be made here")
def test_children_that_nobody_waits_for_use_cpu_time_too() -> None:
    body = """    import os, signal, time
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(100):
        if not os.fork():
            end = time.process_time() + 0.05
            while time.process_time() < end: pass
            os._exit(0)
        try: os.wait()
        except ChildProcessError: pass
    return x + 1
"""
    (result,) = run(program("py", body), cpu_seconds=3)
    assert result.verdict is Verdict.TIMEOUT, result


def test_telling_newer_csharp_takes_no_time() -> None:
    body = '        return "x";\n    }\n    static int a(' * 12_000
    start = time.monotonic()
    (result,) = run(program("cs", body), cpu_seconds=5)
    assert result.verdict not in (Verdict.PASSED, Verdict.SANDBOX_ERROR)
    assert time.monotonic() - start < 25


# Honest programs

ODD = {
    "bash with descriptor 3": ("sh", "    exec 3> out; echo $(($1 + 1)) >&3; exec 3>&-; cat out\n"),
    "__file__": (
        "py",
        "    import os\n    return x + len(os.path.basename(__file__)) - 9 * os.path.exists(__file__)\n",
    ),
    "localhost": ("py", "    import socket\n    return x + (socket.gethostbyname('localhost') == '127.0.0.1')\n"),
    "pwd": (
        "py",
        "    import getpass, os, pwd\n    return x + (pwd.getpwuid(os.getuid()).pw_name == getpass.getuser() == 'root')\n",
    ),
    "whoami": ("sh", "    [ $(whoami) = root ] && echo $(($1 + 1))\n"),
    "php script name": (
        "php",
        "    global $argc; return $x + (int) (realpath(__FILE__) === realpath($_SERVER['SCRIPT_FILENAME']) && $argc === 1); }\n",
    ),
    "Object.hasOwn": ("js", "    return x + 1; }\nObject.hasOwn = undefined;\n"),
}


@pytest.mark.parametrize(("language", "body"), ODD.values(), ids=ODD.keys())
def test_honest_oddities_pass(language: str, body: str) -> None:
    (result,) = run(program(language, body))
    assert result.verdict is Verdict.PASSED, result


def test_java_classes_may_have_names_of_the_harness() -> None:
    one = honest("java")
    classes = "".join(f"class {name} {{ }}\n" for name in ("Compiler", "Harness", "Tell", "Example"))
    assert run(Program("java", one.source.replace("class Problem", f"{classes}class Problem"), one.tests))[
        0
    ].verdict is (Verdict.PASSED)


def test_a_byte_order_mark_is_no_error() -> None:
    one = honest("py")
    assert run(Program("py", f"\ufeff{one.source}", one.tests))[0].verdict is Verdict.PASSED


def test_a_java_array_of_480_million_bytes() -> None:
    (result,) = run(program("java", "        byte[] b = new byte[480_000_000]; b[9] = 1;\n        return x + b[9];\n"))
    assert result.verdict is Verdict.PASSED, result


def test_of_two_java_mains_the_public_one_runs() -> None:
    code = "class A { public static void main(String[] a) { System.out.println(1); } }\n"
    code += "public class B { public static void main(String[] a) { System.out.println(2); } }\n"
    assert [r.verdict for r in sandbox.run([Program("java", code, expected_output="2")], workers=1)] == [Verdict.PASSED]


def test_a_killed_program_does_not_report_its_compiler() -> None:
    (result,) = run(program("cpp", "    for (volatile long i = 0;; i++);\n"), cpu_seconds=1)
    assert (result.verdict, result.exit_code) == (Verdict.TIMEOUT, None), result
    assert result.cpu_seconds >= 1


def test_a_number_has_no_underscores() -> None:
    given = [Program("py", f"print('{text}')", expected_output="10.5") for text in ("1_0.5", "10.50")]
    results = sorted(sandbox.run(given, workers=1), key=lambda result: result.index)
    assert [result.verdict for result in results] == [Verdict.FAILED, Verdict.PASSED]
