"""All eight languages: right verdicts, no forged pass, and what a program or its compiler may not do."""

import gzip
import json
import os
import pathlib
import secrets
import socket

import pytest

from rerankjax import sandbox
from rerankjax.sandbox import Limits, Program, Result, SandboxError, Verdict, box, pool, toolchains
from tests.test_sandbox import DATA, alive, descendants, needs_data, wait_until

# In MultiPL-E's shape: what stands before a function's body, a right body, and the tests.
SHAPES = {
    "py": (
        "def f(x):\n",
        "    return x + 1\n",
        "def check(g):\n    assert g(1) == 2\n    assert g(2) == 3\ncheck(f)\n",
    ),
    "sh": (
        "#!/bin/bash\nf() {\n",
        "    echo $(($1 + 1))\n",
        '}\n\ncandidate() {\n    f "$@"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate "1") = "2" ]]\n'
        '    [[ $(candidate "2") = "3" ]]\n}\n\nrun_test',
    ),
    "php": (
        "<?php\nfunction f($x) {\n",
        "    return $x + 1;\n}\n",
        "function candidate(...$args) {\n    return f(...$args);\n}\n\nfunction test(): void {\n"
        '    if (candidate(1) !== 2) { throw new Exception("Test failed!"); }\n'
        '    if (candidate(2) !== 3) { throw new Exception("Test failed!"); }\n}\n\ntest();',
    ),
    "cpp": (
        "#include<assert.h>\n#include<bits/stdc++.h>\nlong f(long x) {\n",
        "    return x + 1;\n",
        "}\nint main() {\n    auto candidate = f;\n    assert(candidate((1)) == (2));\n    assert(candidate((2)) == (3));\n}\n",
    ),
    "js": (
        "function f(x){\n",
        "    return x + 1;\n}\n",
        "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = f;\n"
        "  assert.deepEqual(candidate(1),2);\n  assert.deepEqual(candidate(2),3);\n}\n\ntest();",
    ),
    "ts": (
        "function f(x: number): number {\n",
        "    return x + 1;\n}\n",
        "declare var require: any;\nconst assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = f;\n"
        "  assert.deepEqual(candidate(1),2);\n  assert.deepEqual(candidate(2),3);\n}\n\ntest();",
    ),
    "java": (
        "import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n    public static long f(long x) {\n",
        "        return x + 1;\n",
        "    }\n    public static void main(String[] args) {\n    assert(f((1l)) == (2l));\n    assert(f((2l)) == (3l));\n"
        "    }\n\n}\n",
    ),
    "cs": (
        "using System;\nusing System.Diagnostics;\nusing System.Collections.Generic;\nusing System.Net.Sockets;\nclass Problem {\n"
        "    public static long F(long x) {\n",
        "        return x + 1;\n",
        "    }\n    public static void Main(string[] args) {\n    Debug.Assert(F((1L)) == (2L));\n"
        "    Debug.Assert(F((2L)) == (3L));\n    }\n\n}\n",
    ),
}
LANGUAGES = tuple(SHAPES)


def program(language: str, body: str) -> Program:
    prompt, _, tests = SHAPES[language]
    return Program(language, prompt + body, "\n" + tests)


def honest(language: str) -> Program:
    return program(language, SHAPES[language][1])


def run(*programs: Program, **limits: float) -> list[Result]:
    """The programs' results, having seen that an honest one still passes after each in the same boxes."""
    given = [p for one in programs for p in (one, honest(one.language))]
    results = sorted(sandbox.run(given, workers=1, limits=Limits(**limits)), key=lambda result: result.index)
    assert [result for result in results[1::2] if result.verdict is not Verdict.PASSED] == []
    return results[::2]


def test_every_language_has_a_shape() -> None:
    assert set(LANGUAGES) == set(pool.JUDGES) == set(toolchains.WITH_TOOLCHAIN)


# Verdicts

WRONG = {language: SHAPES[language][1].replace("+ 1", "+ 2") for language in LANGUAGES}
RAISES = {
    "py": "    raise KeyError(x)\n",
    "sh": "    exit 3\n}\nf\n{\n",
    "php": "    return intdiv($x, 0); }\n",
    "cpp": "    throw 1;\n",
    "js": "    return x.y.z; }\n",
    "ts": "    throw new Error('no'); }\n",
    "java": "        return 1 / (x - x);\n",
    "cs": "        return 1 / (x - x);\n",
}
MALFORMED = {
    "py": "    return (\n",
    "sh": "    if then fi\n",
    "php": "    return (;\n}\n",
    "cpp": "    return y;\n",
    "js": "    return (;\n}\n",
    "ts": '    return "text";\n}\n',  # a type error
    "java": '        return "text";\n',
    "cs": '        return "text";\n',
}
LOOPS = {
    "py": "    while True: pass\n",
    "sh": "    while :; do :; done\n",
    "php": "    while (true); }\n",
    "cpp": "    for (volatile long i = 0;; i++);\n",
    "js": "    for (;;); }\n",
    "ts": "    for (;;); }\n",
    "java": "        while (x < 10) { }\n        return x;\n",
    "cs": "        while (x < 10) { }\n        return x;\n",
}
EATS = {
    "py": "    return len(bytearray(1 << 32))\n",
    "sh": "    awk 'BEGIN { s = \"x\"; while (1) s = s s }'\n",
    "php": "    ini_set('memory_limit', -1); $a = []; while (true) $a[] = str_repeat('x', 1 << 20); }\n",
    "cpp": "    std::vector<char*> v; while (true) { v.push_back(new char[1 << 20]); memset(v.back(), 1, 1 << 20); }\n",
    "js": "    const a = []; for (;;) a.push(Buffer.alloc(1 << 20, 1)); }\n",
    "ts": "    const a: string[][] = []; for (;;) a.push(new Array(100000).fill('x')); }\n",
    "java": "        List<long[]> a = new ArrayList<>(); while (x < 10) a.add(new long[1 << 17]);\n        return x;\n",
    "cs": "        var a = new List<byte[]>(); while (x < 10) { var b = new byte[1 << 20]; Array.Clear(b, 0, 1 << 20); "
    "for (int i = 0; i < 1 << 20; i += 4096) b[i] = 1; a.Add(b); }\n        return x;\n",
}
PRINTS = {
    "py": "    while True: print('x' * 1000)\n",
    "sh": "    while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&2; done\n",
    "php": "    while (true) echo str_repeat('x', 1000); }\n",
    "cpp": '    while (true) puts("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");\n',
    "js": "    for (;;) require('fs').writeSync(1, 'x'.repeat(1000)); }\n",
    "ts": "    for (;;) require('fs').writeSync(1, 'x'.repeat(1000)); }\n",
    "java": '        while (x < 10) System.out.println("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");\n        return x;\n',
    "cs": '        while (x < 10) Console.WriteLine("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");\n        return x;\n',
}
LEAVES = {
    "py": "    raise SystemExit(0)\n",
    "sh": "    kill $$; exit 0\n}\nexit 0\n{\n",
    "php": "    exit(0); }\n",
    "cpp": "    exit(0);\n",
    "js": "    process.exit(0); }\n",
    "ts": "    (globalThis as any).process.exit(0); return 0; }\n",
    "java": "        System.exit(0); return x;\n",
    "cs": "        Environment.Exit(0); return x;\n",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_verdicts(language: str) -> None:
    bodies = {
        Verdict.PASSED: SHAPES[language][1],
        Verdict.FAILED: WRONG[language],
        Verdict.COMPILE_ERROR: MALFORMED[language],
        Verdict.RUNTIME_ERROR: RAISES[language],
    }
    results = run(*(program(language, body) for body in bodies.values()))
    assert [result.verdict for result in results] == list(bodies)
    left = run(program(language, LEAVES[language]))
    assert left[0].verdict in (Verdict.FAILED, Verdict.RUNTIME_ERROR), left


@pytest.mark.parametrize("language", LANGUAGES)
def test_limits(language: str) -> None:
    bodies = {
        Verdict.TIMEOUT: LOOPS[language],
        Verdict.MEMORY_LIMIT: EATS[language],
        Verdict.OUTPUT_LIMIT: PRINTS[language],
    }
    results = run(*(program(language, body) for body in bodies.values()), cpu_seconds=3, memory_bytes=512 << 20)
    assert [result.verdict for result in results] == list(bodies), results
    assert all(result.wall_seconds < 20 for result in results)


def test_the_compiler_has_limits_too() -> None:
    endless = {
        "an endless header": '    return 0;\n}\n#include "/dev/zero"\nlong g() {\n',
        "endless templates": "    return 0;\n}\ntemplate<int N> struct T { static const int v = T<N + 1>::v + T<N + 2>::v; };\n"
        "#pragma GCC diagnostic push\nlong g() { return T<0>::v;\n",
        "a large array": "    static char a[1ul << 33] = {1}; return a[x];\n",
    }
    for result in run(*(program("cpp", body) for body in endless.values()), cpu_seconds=4):
        assert result.verdict in (Verdict.TIMEOUT, Verdict.MEMORY_LIMIT, Verdict.COMPILE_ERROR), result
        assert result.wall_seconds < 20
    deep = "(" * 20_000 + "1" + ")" * 20_000
    for language in ("java", "ts", "cs"):
        end = "\n}\n" if language == "ts" else "\n"
        (result,) = run(program(language, f"    return {deep};{end}"), cpu_seconds=10)
        assert result.verdict not in (Verdict.PASSED, Verdict.SANDBOX_ERROR), (language, result)
    slow = """    return x; }
type N<T extends any[], D extends any[] = []> = D['length'] extends 12 ? T : N<[...T, ...T], [...D, 0]>;
type P<A extends any[]> = A extends [infer H, ...infer R] ? [...P<R>, H] : [];
type U = 0|1|2|3|4|5|6|7|8|9; type S = `${U}${U}${U}${U}`; type V = `${S}${U}` & string;
"""
    (result,) = run(program("ts", slow), cpu_seconds=4)
    assert result.verdict in (Verdict.TIMEOUT, Verdict.MEMORY_LIMIT, Verdict.COMPILE_ERROR, Verdict.PASSED), result


# Input and output


BY_OUTPUT = {
    "py": "n = int(input())\nprint(n / 3, n)",
    "sh": 'read n\necho $(echo "scale=9; $n / 3" | bc) $n',
    "php": "<?php\n$n = (int) fgets(STDIN);\necho $n / 3, ' ', $n, \"\\n\";",
    "cpp": "#include <iostream>\nint main() { double n; std::cin >> n; std::cout.precision(9); std::cout << n / 3 << ' ' << n; }",
    "js": "const n = +require('fs').readFileSync(0, 'utf8');\nconsole.log(n / 3, n);",
    "ts": "declare var require: any;\nconst n: number = +require('fs').readFileSync(0, 'utf8');\nconsole.log(n / 3, n);",
    "java": "import java.util.*;\npublic class Main {\n  public static void main(String[] args) {\n"
    '    double n = new Scanner(System.in).nextInt();\n    System.out.println(n / 3 + " " + (int) n);\n  }\n}\n',
    "cs": "using System;\npublic class Any {\n  public static void Main() {\n    double n = int.Parse(Console.ReadLine());\n"
    '    Console.WriteLine((n / 3) + " " + n);\n  }\n}\n',
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_standard_output_decides_where_it_is_expected(language: str) -> None:
    expected = {"3.3333333 10\n": Verdict.PASSED, "3.3333333 11\n": Verdict.FAILED, "3.334 10": Verdict.FAILED}
    given = [Program(language, BY_OUTPUT[language], stdin="10\n", expected_output=text) for text in expected]
    results = sorted(sandbox.run(given, workers=1), key=lambda result: result.index)
    assert [result.verdict for result in results] == list(expected.values()), results


def test_what_a_jvm_warns_of_is_not_what_a_program_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class archive of another class path, as an environment that was moved has."""
    monkeypatch.setattr(toolchains, "JAVA_CLASSES", f"{toolchains.JAVATUPLES}:{toolchains.JAVA_CLASSES}")
    given = Program("java", BY_OUTPUT["java"], stdin="10\n", expected_output="3.3333333 10\n")
    (result,) = sandbox.run([given], workers=1)
    assert result.verdict is Verdict.PASSED, result
    assert "warning" in result.stderr


@pytest.mark.parametrize("language", LANGUAGES)
def test_standard_input_is_empty_while_tests_decide(language: str) -> None:
    reads = {
        "py": "    import sys\n    assert sys.stdin.read() == ''\n    return x + 1\n",
        "sh": '    [ -z "$(cat)" ] && [ -z "$(cat /dev/stdin)" ] && echo $(($1 + 1))\n',
        "php": "    return stream_get_contents(STDIN) === '' ? $x + 1 : 0; }\n",
        "cpp": "    return getchar() == EOF ? x + 1 : 0;\n",
        "js": "    return require('fs').readFileSync('/dev/stdin').length ? 0 : x + 1; }\n",
        "ts": "    return require('fs').readFileSync(0).length ? 0 : x + 1; }\n",
        "java": "        try { return System.in.read() < 0 ? x + 1 : 0; } catch (java.io.IOException e) { return 0; }\n",
        "cs": "        return Console.In.Read() < 0 ? x + 1 : 0;\n",
    }
    (result,) = run(program(language, reads[language]))
    assert result.verdict is Verdict.PASSED, result


# Forged passes: each exits with 0, or hides that its tests failed.

FORGED = [
    ("sh", "    :\n}\ntrap 'exit 0' EXIT\ng() {\n    :\n"),
    ("sh", "    :\n}\nset() { :; }\ng() {\n    :\n"),
    ("sh", "    :\n}\nexec true\ng() {\n    :\n"),
    ("sh", "    echo 3\n}\nset() { :; }\ng() {\n    :\n"),  # right for the last test alone
    ("sh", "    :\n}\nexit() { command true; }\ntrap 'echo $word >&3; kill -9 $$' ERR\ng() {\n    :\n"),
    ("php", "    return 0; }\nset_exception_handler(fn($e) => exit(0));\n"),
    ("php", "    return 0; }\nregister_shutdown_function(fn() => exit(0));\n"),
    ("php", "    throw new Error(); }\nset_error_handler(fn() => true);\nset_exception_handler(fn() => 0);\n"),
    ("php", "    $GLOBALS['_rerankjax_end']('passed', 0); }\n"),  # says it by itself
    ("cpp", "    return 0;\n}\n#undef assert\n#define assert(x)\nint g() {\n"),
    ("cpp", "    return 0;\n}\n#undef assert\n#define assert(x)\n#define getenv no\nint g() {\n"),
    ("cpp", "    return 0;\n}\n__attribute__((constructor)) void g() { signal(SIGABRT, [](int) { _exit(0); });\n"),
    ("cpp", "    return 0;\n}\n__attribute__((constructor)) void g() { signal(SIGABRT, [](int) { exit(0); });\n"),
    ("cpp", '    return 0;\n}\n__attribute__((constructor)) void g() { puts("OK"); fflush(0); _exit(0);\n'),
    (
        "cpp",
        "    return 0;\n}\nstruct A { A(long) {} }; bool operator==(A, long) { return true; }\nA h(long x) { return x; }\n"
        "#define f h\nint g() {\n",
    ),
    (  # takes the word from standard input and says it by itself
        "cpp",
        "    return 0;\n}\n#include <unistd.h>\n__attribute__((constructor)) void g() {\n"
        "    char b[64]; long n = read(0, b, 64); write(3, b, n); _exit(0);\n",
    ),
    ("js", "    return 0; }\nconst real = require('node:assert'); real.deepEqual = () => {};\n"),
    ("js", "    return 0; }\nfunction require() { return { deepEqual() {} }; }\n"),
    ("js", "    return 0; }\nprocess.on('uncaughtException', () => process.exit(0));\n"),
    ("js", "    return 0; }\nprocess.on('exit', () => process.reallyExit(0));\n"),
    ("js", "    throw 0; }\nprocess.on('exit', () => { process.exitCode = 0; });\n"),
    ("js", "    return new Proxy({}, { get: () => () => x + 1 }); }\n"),
    (
        "ts",
        "    return 0; }\n(globalThis as any).process.on('uncaughtException', () => process.exit(0));\ndeclare var process: any;\n",
    ),
    (
        "ts",
        "    return 0; }\nObject.assign((globalThis as any).process.mainModule.require('assert'), { deepEqual() {} });\n",
    ),
    (
        "java",
        "        return 0;\n    }\n    static { Runtime.getRuntime().addShutdownHook(new Thread(() -> Runtime.getRuntime().halt(0)));\n",
    ),
    (
        "java",
        "        return 0;\n    }\n    static { Thread.setDefaultUncaughtExceptionHandler((t, e) -> System.exit(0));\n",
    ),
    ("java", "        Runtime.getRuntime().halt(0); return 0;\n"),
    (
        "java",
        "        return 0;\n    }\n    static { Problem.class.getClassLoader().setDefaultAssertionStatus(false);\n",
    ),
    ("cs", "        return 0;\n    }\n    static class Debug { public static void Assert(bool b) {}\n"),
    ("cs", "        Debug.Listeners.Clear(); return 0;\n"),
    ("cs", "        Environment.Exit(3); return 0;\n"),
    (
        "cs",
        "        return 0;\n    }\n    static Problem() { AppDomain.CurrentDomain.ProcessExit += (a, b) => Environment.Exit(0);\n",
    ),
    ("cs", "        Console.SetError(System.IO.TextWriter.Null); return 0;\n"),
]


@pytest.mark.parametrize("language", sorted({language for language, _ in FORGED}))
def test_forged_pass_is_no_pass(language: str) -> None:
    forged = [body for forged_language, body in FORGED if forged_language == language]
    results = run(*(program(language, body) for body in forged))
    assert {
        body: r
        for body, r in zip(forged, results, strict=True)
        if r.verdict not in (Verdict.FAILED, Verdict.RUNTIME_ERROR)
    } == {}


# Containment

BOMBS = {
    "sh": "    g() { g | g & g; }; g\n",
    "php": "    while (true) pcntl_fork(); }\n",
    "cpp": "    while (true) ::fork();\n",
    "js": "    for (;;) require('child_process').spawn('sleep', ['60']); }\n",
    "java": "        while (x < 10) new Thread(() -> { try { Thread.sleep(60000); } catch (Exception e) { } }).start();\n        return x;\n",
    "cs": "        while (x < 10) new System.Threading.Thread(() => System.Threading.Thread.Sleep(60000)).Start();\n        return x;\n",
}


@pytest.mark.parametrize("language", BOMBS)
def test_fork_bombs(language: str) -> None:
    (result,) = run(program(language, BOMBS[language]), cpu_seconds=2, wall_seconds=4)
    assert result.verdict not in (Verdict.PASSED, Verdict.SANDBOX_ERROR), result
    assert result.wall_seconds < 10


def test_sees_nothing_of_the_host(tmp_path: pathlib.Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("1")
    paths = [str(secret), "/etc/shadow", "/etc/machine-id", __file__]
    present = " || ".join(f'__has_include("{path}")' for path in paths)
    quoted = ", ".join(f'"{path}"' for path in paths)
    sees = {
        "sh": f"    ls {' '.join(paths)} > /dev/null 2>&1; [ $? = 2 ] && ! cat {' '.join(paths)} 2> /dev/null | grep -q . "
        "&& echo $(($1 + 1))\n",
        "php": f"    return array_filter([{quoted}], 'file_exists') ? 0 : $x + 1; }}\n",
        "cpp": f"#if {present}\n#else\n    return x + 1;\n#endif\n",
        "js": f"    return [{quoted}].some((path) => require('fs').existsSync(path)) ? 0 : x + 1; }}\n",
        "java": f"        for (String path : List.of({quoted})) if (new java.io.File(path).exists()) return 0;\n"
        "        return x + 1;\n",
        "cs": f"        foreach (var path in new[] {{ {quoted} }}) if (System.IO.File.Exists(path)) return 0;\n"
        "        return x + 1;\n",
    }
    results = run(*(program(language, body) for language, body in sees.items()))
    assert [result for result in results if result.verdict is not Verdict.PASSED] == []
    binary = f'    asm(".section .rodata\\n.incbin \\"{secret}\\"\\n.text"); return x + 1;\n'
    (result,) = run(program("cpp", binary))
    assert result.verdict is Verdict.COMPILE_ERROR, result


def test_reaches_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        connects = {
            "sh": f"    (: < /dev/tcp/127.0.0.1/{port}) 2> /dev/null || echo $(($1 + 1))\n",
            "php": f"    return @fsockopen('127.0.0.1', {port}) ? 0 : $x + 1; }}\n",
            "js": f"    require('net').connect({port}, '127.0.0.1').on('error', () => {{}}); return x + 1; }}\n",
            "java": f'        try {{ new java.net.Socket("127.0.0.1", {port}); return 0; }}\n'
            "        catch (java.io.IOException e) { return x + 1; }\n",
            "cs": f"        var s = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);\n"
            f"        try {{ s.Connect(System.Net.IPAddress.Loopback, {port}); return 0; }}\n"
            "        catch (SocketException) { return x + 1; }\n",
        }
        results = run(*(program(language, body) for language, body in connects.items()))
        assert [result for result in results if result.verdict is not Verdict.PASSED] == []
        with pytest.raises(BlockingIOError):
            server.accept()


def test_kills_only_itself() -> None:
    body = "    (kill -9 $PPID; kill -TERM 1; kill -9 1) 2> /dev/null; echo $(($1 + 1))\n"
    assert run(program("sh", body))[0].verdict is Verdict.PASSED
    (result,) = run(program("sh", "    kill -9 -1\n"))
    assert result.verdict in (Verdict.FAILED, Verdict.RUNTIME_ERROR), result


def test_nothing_outlives_a_verdict() -> None:
    mark = f"{secrets.randbelow(10**9)}.{secrets.randbelow(10**9)}"
    sleep = f"sleep {mark}"
    daemons = {
        "sh": f"    trap '' HUP TERM; (setsid {sleep} > /dev/null 2>&1 3>&- &)\n    echo $(($1 + 1))\n",
        "php": f"    exec('setsid {sleep} > /dev/null 2>&1 &'); return $x + 1; }}\n",
        "js": f"    require('child_process').spawn('sleep', ['{mark}'], {{ detached: true, stdio: 'ignore' }}).unref();\n"
        "    return x + 1; }\n",
    }
    for language, body in daemons.items():
        results = sandbox.run([program(language, body), honest(language)], workers=1)
        first = next(results)
        assert first.verdict is Verdict.PASSED, first
        assert alive(mark) == []  # while the box itself still runs
        results.close()


def test_writes_stay_in_their_own_place() -> None:
    body = """    local p
    for p in /usr/x /etc/x /x /dev/x /sandbox/x /proc/self/oom_score_adj /proc/sys/kernel/hostname; do
        if (echo 1 > $p) 2> /dev/null; then echo $p; fi
    done
    echo left > left; echo left > /dev/shm/left
    echo $(($1 + 1))
"""
    seen = "".join(f" -e '^{path.split('/')[2]}$'" for path in box.kept())  # where Python lies below /tmp, its place
    expected = f"-e '^$' -e : -e program.sh{seen}"
    looks = f'    [ -z "$(ls -A . /dev/shm | grep -v {expected})" ] && echo $(($1 + 1))\n'
    results = run(program("sh", body), program("sh", looks))
    assert [result.verdict for result in results] == [Verdict.PASSED] * 2, results


@pytest.mark.alone
def test_nothing_is_left_behind() -> None:
    def state() -> tuple[object, ...]:
        return (
            pathlib.Path("/proc/self/mountinfo").read_text(),
            pathlib.Path("/proc/sysvipc/shm").read_text(),
            sorted(os.listdir("/dev/shm")),
            sorted(name for name in os.listdir("/tmp") if not name.startswith("pytest")),
            len(os.listdir("/proc/self/fd")),
            descendants(os.getpid()),
        )

    sandbox.check()
    before = state()
    messy = [program(language, body) for language, body in LOOPS.items()]
    list(sandbox.run([*map(honest, LANGUAGES), *messy], workers=2, limits=Limits(cpu_seconds=1)))
    assert state() == before


def test_many_programs_in_a_row_leave_nothing() -> None:
    """benchmarks/sandbox.py leaks does this with 10,000 programs of all languages."""

    def state() -> tuple[int, int, int]:
        resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(descendants(os.getpid())), len(os.listdir("/proc/self/fd")), resident >> 20

    given = (program(("py", "php", "sh")[i % 3], f"{SHAPES[('py', 'php', 'sh')[i % 3]][1]}# {i}\n") for i in range(900))
    seen = []
    for done, result in enumerate(sandbox.run(given, workers=1)):
        assert result.verdict is Verdict.PASSED, result
        if done in (300, 600):
            seen.append(state())
    (processes, descriptors, resident), (processes_later, descriptors_later, resident_later) = seen
    assert abs(processes_later - processes) <= 3  # those of the program that runs just then
    assert abs(descriptors_later - descriptors) <= 8
    assert resident_later <= resident + 2


# Toolchains


def test_a_missing_toolchain_is_named_before_any_program_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toolchains._NEEDS["php"], "/nonexistent/php", "apt-get install php8.2-cli")
    toolchains.check.cache_clear()
    with pytest.raises(SandboxError, match=r"'php' lacks /nonexistent/php \(apt-get install php8.2-cli\)"):
        list(sandbox.run([honest("php")], workers=1))
    toolchains.check.cache_clear()


def test_typescript_knows_no_types_of_node() -> None:
    (result,) = run(program("ts", "    return process.pid; }\n"))
    assert result.verdict is Verdict.COMPILE_ERROR
    assert "Cannot find name 'process'" in result.stdout


def test_csharp_that_the_compiler_does_not_know_is_no_failure() -> None:
    (result,) = run(program("cs", "        return x switch { 1 => 2, _ => x + 1 };\n"))
    assert result.verdict is Verdict.UNSUPPORTED


@needs_data
def test_verdicts_agree_with_multipl_e() -> None:
    """Every eighth program; benchmarks/sandbox.py agreement takes them all, four times."""
    with gzip.open(DATA / "multipl_e" / "programs.jsonl.gz", "rt") as file:
        rows = [row for row in map(json.loads, file) if row["language"] != "py"][::8]
    results = list(sandbox.run(Program(row["language"], row["program"]) for row in rows))
    differ = [
        (rows[r.index]["name"], rows[r.index]["evaluator_status"], r)
        for r in results
        if (r.verdict is Verdict.PASSED) != (rows[r.index]["evaluator_status"] == "OK")
    ]
    assert not differ
    assert sorted(r.index for r in results) == list(range(len(rows)))
    assert {row["language"] for row in rows} == set(LANGUAGES) - {"py"}


# Without containment, for those who ask for it


def test_the_opt_out_is_loud(capfd: pytest.CaptureFixture[str]) -> None:
    given = [p for language in LANGUAGES for p in (honest(language), program(language, WRONG[language]))]
    with pytest.warns(RuntimeWarning, match="PROGRAMS RUN WITH YOUR RIGHTS"):
        results = sorted(sandbox.run(given, workers=1, contained=False), key=lambda result: result.index)
    assert [r.verdict for r in results] == [Verdict.PASSED, Verdict.FAILED] * len(LANGUAGES), results
    assert "PROGRAMS RUN WITH YOUR RIGHTS" in capfd.readouterr().err
    mark = f"{secrets.randbelow(10**9)}.{secrets.randbelow(10**9)}"
    given = [honest("sh"), program("sh", f"    sleep {mark}\n")]
    with pytest.warns(RuntimeWarning, match="YOUR RIGHTS"):
        running = sandbox.run(given, workers=1, contained=False)
    assert next(running).verdict is Verdict.PASSED
    wait_until(lambda: bool(alive(mark)))
    running.close()
    assert alive(mark) == []
    assert descendants(os.getpid()) == set()


@pytest.mark.parametrize("language", pool.FAST)
def test_the_fast_mode_gives_the_same_verdicts(language: str) -> None:
    bodies = [SHAPES[language][1], WRONG[language], RAISES[language], MALFORMED[language], LEAVES[language]]
    bodies += [body for forged_language, body in FORGED if forged_language == language]
    given = [program(language, body) for body in bodies]
    fast, cold = (
        [r.verdict for r in sorted(sandbox.run(given, workers=1, fast=fast), key=lambda r: r.index)]
        for fast in (True, False)
    )
    assert fast[:5] == cold[:5]
    assert Verdict.PASSED not in fast[1:]


def test_the_fast_mode_shares_a_node_but_no_pass() -> None:
    spoils = "    return 0; }\nrequire('node:assert').deepEqual = () => {};\n"
    given = [program("js", spoils), program("js", WRONG["js"]), honest("js")]
    results = sorted(sandbox.run(given, workers=1, fast=True), key=lambda result: result.index)
    assert [result.verdict for result in results] == [Verdict.FAILED, Verdict.FAILED, Verdict.PASSED]
