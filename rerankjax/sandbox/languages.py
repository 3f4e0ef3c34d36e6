"""Seven languages: what runs for a program of each, and what its end means. Python is in python.py."""

import base64
import contextlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from rerankjax.sandbox import toolchains
from rerankjax.sandbox.box import Box, BoxDiedError, LimitError
from rerankjax.sandbox.control import CAUGHT
from rerankjax.sandbox.control import control as control_of
from rerankjax.sandbox.output import matches
from rerankjax.sandbox.verdict import Program, Verdict

_NOT_COMPILED = (Verdict.COMPILE_ERROR, Verdict.UNSUPPORTED)

Boxes = Callable[[str], Box]  # by kind
Judged = tuple[Verdict, dict[str, Any]]

# What a program's last words say of an end that its exit code does not tell. The first that is found counts.
_SIGNS: dict[str, list[tuple[Verdict, str]]] = {
    "sh": [
        (Verdict.COMPILE_ERROR, r"syntax error"),
        (Verdict.MEMORY_LIMIT, r"cannot allocate|out of memory|memory exhausted"),
    ],
    "php": [
        (Verdict.COMPILE_ERROR, r"Parse error"),
        (Verdict.FAILED, r"Test failed!"),
        (Verdict.MEMORY_LIMIT, r"Allowed memory size|Out of memory"),
    ],
    "cpp": [(Verdict.FAILED, r"Assertion .* failed"), (Verdict.MEMORY_LIMIT, r"std::bad_alloc")],
    "js": [
        (Verdict.FAILED, r"AssertionError"),
        (Verdict.COMPILE_ERROR, r"SyntaxError"),
        (Verdict.MEMORY_LIMIT, r"heap out of memory"),
    ],
    "java": [(Verdict.FAILED, r"java\.lang\.AssertionError"), (Verdict.MEMORY_LIMIT, r"OutOfMemoryError")],
    "cs": [
        (Verdict.RUNTIME_ERROR, r"Unhandled Exception"),
        (Verdict.FAILED, r"DefaultTraceListener\.Fail"),
        (Verdict.MEMORY_LIMIT, r"OutOfMemoryException"),
    ],
}
_SIGNS["ts"] = _SIGNS["js"]
# What mcs, which knows C# 7, does not: switch expressions, ranges, new(), ??=, `is not`, static local functions.
_NEWER_CSHARP = re.compile(
    r"\w\s+switch\s*\{|\.\.\^?\w|\[\^|\bnew\s*\(\)|\?\?=|\bis\s+not\b|\bstatic\s+\w+ \w+\([^)]*\)\s*=>"
)


def _step(
    stage: str, *argv: str, address_space: bool = False, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """What inside/steps.py starts. What reserves memory without using it cannot have its address space limited."""
    return {
        "stage": stage,
        "argv": argv,
        "limit_address_space": address_space,
        "quiet": stage == "control",
        "environment": environment or {},
    }


def _run_steps(
    boxes: Boxes,
    program: Program,
    files: Mapping[str, str | bytes],
    steps: list[dict[str, Any]],
    word: str,
    *,
    tell: bool = True,
) -> Judged:
    """Ask for `steps` and judge their ends.

    `word` is what the program's harness says after the last test; `tell`: it learns that from standard input.
    """
    by_output = program.expected_output is not None
    box = boxes("programs")
    reply = box.ask(
        {
            "files": {
                name: text.decode("latin-1") if isinstance(text, bytes) else text for name, text in files.items()
            },
            "encodings": {name: "latin-1" for name, text in files.items() if isinstance(text, bytes)},
            "steps": steps,
            "stdin": program.stdin if by_output else word if tell else "",
            "keep_output": by_output,
        }
    )
    records = {record["stage"]: record for record in map(json.loads, filter(None, reply["said"].split("\n")))}
    last = records.get("run") or records.get("compile") or {}
    reply |= {key: last[key] for key in ("exit_code", "signal", "cpu_seconds") if last}
    if "run" not in records:
        if reply["killed"]:
            return Verdict(reply["killed"]), reply
        return Verdict.COMPILE_ERROR, reply
    if reply["exit_code"] == 0 and last["said"] == "caught":
        return Verdict.FAILED, {**reply, "stderr": CAUGHT}
    wrong = records.get("control")
    if wrong and wrong["exit_code"] == 0 and wrong["said"] == word:
        return Verdict.FAILED, {**reply, "stderr": CAUGHT}
    passed = matches(reply["stdout"], program.expected_output or "") if by_output else last["said"] == word
    return _verdict(program.language, reply, passed, box.limits.cpu_seconds), reply


def _verdict(language: str, reply: dict[str, Any], passed: bool, cpu_seconds: float) -> Verdict:
    """`passed` holds only with exit code 0, and within the limit: a killed control is no reason against a pass."""
    if reply["cpu_seconds"] > cpu_seconds:
        return Verdict.TIMEOUT
    if reply["exit_code"] == 0:
        return Verdict.PASSED if passed else Verdict.FAILED
    words = reply["stderr"] + (reply["stdout"] if language == "php" else "")
    for verdict, sign in _SIGNS[language]:
        if re.search(sign, words):
            return verdict
    # Under `set -e` a test that fails ends Bash without a word.
    return Verdict.FAILED if language == "sh" and reply["exit_code"] == 1 else Verdict.RUNTIME_ERROR


def _alone(program: Program, language: str, wrong: bool) -> str | None:
    """The program with an assertion that must fail in the place of all others."""
    found = control_of(language, program.source, program.tests) if wrong and program.expected_output is None else None
    if found is None:
        return None
    whole = program.source + program.tests
    # Not the last command: the script's own status must not do what the test's failure has to.
    rest = "\n    true" if language == "sh" else ""
    return whole[: found.start] + found.wrong + rest + whole[found.end :]


def _judge_compiled(
    program: Program, language: str, control: bool, branch: str, attempt: Callable[[str, bool, bool], Judged]
) -> Judged:
    """Judge by `attempt(text, checked, quick)`, which compiles and runs: with a failing branch before the tests.

    What does not compile so is tried as it is. If it compiles then, either the compiler was too quick, or it does not
    take the wrong assertion where it takes the program: then one that is never so has to do, and a program that cannot
    be compiled with that has seen to it.
    """
    whole = program.source + program.tests
    found = control_of(language, program.source, program.tests) if control and program.expected_output is None else None
    begin, rest = (whole[: found.start], whole[found.start :]) if found else (whole, "")
    checked = [begin + branch.format(text) + rest for text in (found.wrong, found.never)] if found else []
    judged = attempt(checked[0] if checked else whole, bool(checked), True)
    if judged[0] not in _NOT_COMPILED:
        return judged
    plain = attempt(whole, False, False)
    if plain[0] is not Verdict.PASSED or not checked:
        return plain
    for text in checked:
        judged = attempt(text, True, False)
        if judged[0] not in _NOT_COMPILED:
            return judged
    return Verdict.FAILED, {**plain[1], "stderr": CAUGHT}


def judge_sh(boxes: Boxes, program: Program, *, control: bool) -> Judged:
    """Bash: the last line, which only a script that was not left reaches, says the word."""
    word = secrets.token_hex(8)
    say = "" if program.expected_output is not None else f"\n_status=$?; printf %s {word} >&3; exit $_status\n"
    files: dict[str, str | bytes] = {"program.sh": program.source + program.tests + say}
    steps = [_step("run", toolchains.BASH, "program.sh", address_space=True)]
    wrong = _alone(program, "sh", control)
    if wrong is not None:
        files["control.sh"] = wrong + say
        steps.append(_step("control", toolchains.BASH, "control.sh"))
    return _run_steps(boxes, program, files, steps, word, tell=False)


def judge_php(boxes: Boxes, program: Program, *, control: bool) -> Judged:
    """PHP: a fork of a warm one, and one more for the control."""
    box = boxes("php")
    by_output = program.expected_output is not None
    body = {"source": program.source + program.tests, "stdin": program.stdin, "keep_output": by_output}
    reply = box.ask(body)
    if reply["killed"]:
        return Verdict(reply["killed"]), reply
    passed = matches(reply["stdout"], program.expected_output or "") if by_output else reply["said"] == "passed"
    verdict = _verdict("php", reply, passed, box.limits.cpu_seconds)
    wrong = _alone(program, "php", control)
    if verdict is Verdict.PASSED and wrong is not None:
        again = box.ask({**body, "source": wrong})
        if again["said"] == "passed" and again["exit_code"] == 0:
            return Verdict.FAILED, {**reply, "stderr": CAUGHT}
    return verdict, reply


_GXX = (toolchains.GXX, "-std=c++17", "-w", "-fuse-ld=mold")
_HEADERS = re.compile(r'(?:\s|//[^\n]*\n|#include\s*[<"](?!bits/)[\w./]+[>"])*#include\s*<bits/stdc\+\+\.h>')
_ALL_HEADERS = ("-include", toolchains.CPP_HEADERS)
_USUAL_HEADERS = ("-isystem", toolchains.CPP_USUAL, "-include", f"{toolchains.CPP_USUAL}/headers.h")


def judge_cpp(boxes: Boxes, program: Program, *, control: bool) -> Judged:
    """C++: compiled once for both runs, with the headers that MultiPL-E's programs begin with compiled already.

    At first only the usual ones: what compiles with those means the same with all, unless it brings in the whole
    namespace and so may call something that the others declare, too.
    """
    by_output = program.expected_output is not None
    word = secrets.token_hex(8)
    harness = () if by_output else (toolchains.CPP_HARNESS, "-Wl,--wrap=main")
    headers = _ALL_HEADERS if _HEADERS.match(program.source) else ()
    usual = _USUAL_HEADERS if headers and "using namespace" not in program.source else headers

    def attempt(text: str, checked: bool, quick: bool) -> Judged:
        included = usual if quick else headers
        steps = [_step("compile", *_GXX, *included, "program.cpp", *harness, "-o", "program")]
        steps.append(_step("run", "./program", address_space=True))
        if checked:
            steps.append(_step("control", "./program", environment={"RERANKJAX_CONTROL": "1"}))
        return _run_steps(boxes, program, {"program.cpp": text}, steps, word)

    branch = 'if (::getenv("RERANKJAX_CONTROL")) {{\n{}\n    return 0;\n    }}\n'
    return _judge_compiled(program, "cpp", control, branch, attempt)


_NODE_HARNESS = "node/harness.js"


def judge_js(boxes: Boxes, program: Program, *, control: bool, fast: bool = False) -> Judged:
    """JavaScript: one node, which runs the program and then the control as a module of its own.

    fast: a node that others shared may find that a test fails; whatever else it finds does not count.
    """
    return _run_node(boxes, program, program, control, fast)


def judge_ts(boxes: Boxes, program: Program, *, control: bool, fast: bool = False) -> Judged:
    """TypeScript: checked and compiled by a warm compiler, then as JavaScript."""
    try:
        compiled = boxes("tsc").compile((program.source + program.tests).encode(errors="replace"))
    except LimitError as error:
        return error.verdict, {"stderr": f"tsc: {error}"}
    if not compiled["succeeded"]:
        return Verdict.COMPILE_ERROR, {"stdout": compiled["log"], "exit_code": 2}
    return _run_node(boxes, program, Program("js", compiled["program"]), control, fast)


def _run_node(boxes: Boxes, program: Program, compiled: Program, control: bool, fast: bool) -> Judged:
    by_output = program.expected_output is not None
    if fast and not by_output:
        with contextlib.suppress(BoxDiedError, LimitError):
            reply = boxes("fast").compile((compiled.source + compiled.tests).encode(errors="replace"))
            if reply["failed"]:
                return Verdict.FAILED, {"stderr": reply["stderr"], "exit_code": 1}
    word = secrets.token_hex(8)
    files: dict[str, str | bytes] = {"program.js": compiled.source + compiled.tests}
    wrong = None if by_output else _alone(compiled, "js", control)
    if wrong is not None:
        files["control.js"] = wrong
    box = boxes("programs")
    heap = f"--max-old-space-size={box.limits.memory_bytes >> 20}"
    run = _step("run", toolchains.NODE, heap, f"{box.inside}/{_NODE_HARNESS}", "output" if by_output else "tests")
    return _run_steps(boxes, program, files, [run], word)


def judge_java(boxes: Boxes, program: Program, *, control: bool) -> Judged:
    """Java: compiled by a warm javac, run by a JVM of its own with a class loader for the control."""
    by_output = program.expected_output is not None
    heap = f"-Xmx{boxes('programs').limits.memory_bytes // 2}"
    archive = f"-XX:SharedArchiveFile={toolchains.JAVA_ARCHIVE}"
    classpath = f"{toolchains.JAVA_CLASSES}:{toolchains.JAVATUPLES}"
    java = (toolchains.JAVA, *toolchains.JAVA_OPTIONS, heap, archive, "-ea", "-cp", classpath, "Harness", "classes")

    def attempt(text: str, checked: bool, quick: bool) -> Judged:
        try:
            compiled = boxes("javac").compile((b"o" if by_output else b"j") + text.encode(errors="replace"))
        except LimitError as error:
            return error.verdict, {"stderr": f"javac: {error}"}
        if not compiled["succeeded"]:
            return Verdict.COMPILE_ERROR, {"stderr": compiled["log"], "exit_code": 1}
        classes = {name: base64.b64decode(code) for name, code in compiled["classes"].items()}
        with_main = [name for name, code in classes.items() if b"([Ljava/lang/String;)V" in code]
        name = "".join(with_main[:1]) if by_output else "Problem"
        run = _step("run", *java, name, "output" if by_output else "control" if checked else "tests")
        files = {f"classes/{name.replace('.', '/')}.class": code for name, code in classes.items()}
        return _run_steps(boxes, program, files, [run], secrets.token_hex(8))

    branch = 'if (java.lang.Boolean.getBoolean("rerankjax.control")) {{\n{}\n    return;\n    }}\n'
    return _judge_compiled(program, "java", control, branch, attempt)


def judge_cs(boxes: Boxes, program: Program, *, control: bool) -> Judged:
    """C#: compiled by a warm mcs, run by a mono of its own."""
    by_output = program.expected_output is not None

    def attempt(text: str, checked: bool, quick: bool) -> Judged:
        try:
            compiled = boxes("mcs").compile(text.encode(errors="replace"))
        except LimitError as error:
            return error.verdict, {"stderr": f"mcs: {error}"}
        if not compiled["succeeded"]:
            verdict = Verdict.UNSUPPORTED if _NEWER_CSHARP.search(text) else Verdict.COMPILE_ERROR
            return verdict, {"stderr": base64.b64decode(compiled["log64"]).decode(errors="replace"), "exit_code": 1}
        mode = "output" if by_output else "control" if checked else "tests"
        command = (toolchains.MONO, toolchains.CSHARP_HARNESS, "program.exe", mode)
        run = _step("run", *command, environment={"MONO_TRACE_LISTENER": "Console.Error"})
        files = {"program.exe": base64.b64decode(compiled["program"])}
        return _run_steps(boxes, program, files, [run], secrets.token_hex(8))

    branch = 'if (System.Environment.GetEnvironmentVariable("RERANKJAX_CONTROL") != null) {{\n{}\n    return;\n    }}\n'
    return _judge_compiled(program, "cs", control, branch, attempt)
