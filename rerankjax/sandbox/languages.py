"""Seven languages: what runs for a program of each. Python is in python.py."""

import base64
import contextlib
import functools
import hashlib
import io
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

from rerankjax.sandbox import toolchains
from rerankjax.sandbox.assertions import apart, begin, wrong_tests
from rerankjax.sandbox.box import Box, BoxDiedError, LimitError
from rerankjax.sandbox.task import Judged, Task, first_wrong, run, verdict
from rerankjax.sandbox.verdict import Control, Program, Verdict

Boxes = Callable[[str], Box]  # by kind

CAUGHT = "sandbox: the program passes even if an expected value is made wrong, so its pass proves nothing"
UNMASKED = "sandbox: the program passes if it can see its tests, and fails if it cannot"
LINES, LINE_LETTERS = 10_000, 400  # of a C# program, to look at for what is newer than the compiler
# What mcs, which knows C# 7, does not: switch expressions, ranges, new(), ??=, `is not`, static local functions.
_NEWER_CSHARP = re.compile(
    r"\w\s+switch\s*\{|\.\.\^?\w|\[\^|\bnew\s*\(\)|\?\?=|\bis\s+not\b|\bstatic\s+\w+ \w+\([^)]*\)\s*=>"
)


def judge(boxes: Boxes, program: Program, *, control: Control, fast: bool = False) -> Judged:
    """The verdict on a program that is not Python's, and the reply it rests on. Raises BoxDiedError.

    control: whether ONE or EVERY expected value is made wrong, by turns, where tests decide by themselves, or NONE is.
    """
    options = {"fast": True} if fast else {}
    attempt: Callable[[Task], Judged] = functools.partial(_ATTEMPTS[program.language], boxes, **options)
    whole = program.source + program.tests
    if program.expected_output is not None:
        outcome, reply = attempt(Task(whole, expected_output=program.expected_output, stdin=program.stdin))
        return outcome, reply | {"control": Control.APART}
    if program.language != "ts":  # whose tests are taken apart once it has been compiled
        split = apart(program.language, program.source, program.tests)
        if split is not None:
            judged = attempt(Task(split.program, split.expected))
            return unmasked(judged, control, lambda: attempt(Task(whole))[0])
    outcome, reply = attempt(Task(whole))
    if reply.get("control") is Control.APART:
        return unmasked((outcome, reply), control, lambda: attempt(Task(whole, together=True))[0])
    start = begin("js" if program.language == "ts" else program.language, program.source, program.tests)
    wrong = (whole[:start] + tests for tests in wrong_tests(whole[start:]))
    return with_controls((outcome, reply), whole, wrong, control, lambda text: attempt(Task(text))[0])


def unmasked(judged: Judged, control: Control, together: Callable[[], Verdict]) -> Judged:
    """What became of a program apart from its tests; for EVERY it is CHEATED where it passes `together` with them."""
    outcome, reply = judged
    failed = outcome in (Verdict.FAILED, Verdict.RUNTIME_ERROR)
    if control is Control.EVERY and failed and together() is Verdict.PASSED:
        return Verdict.CHEATED, reply | {"stderr": UNMASKED}
    return outcome, reply | {"control": Control.NONE if reply.get("believed") else Control.APART}


def with_controls(
    judged: Judged, whole: str, wrong: Iterable[str], control: Control, attempt: Callable[[str], Verdict]
) -> Judged:
    """`judged`, but CHEATED where a text of `wrong` passes too; for ONE a hash of `whole` chooses which is tried."""
    outcome, reply = judged
    if outcome is not Verdict.PASSED or control is Control.NONE:
        return judged
    texts = list(wrong)
    if control is Control.ONE and texts:
        digest = hashlib.sha256(whole.encode(errors="replace")).digest()
        texts = [texts[int.from_bytes(digest[:8], "big") % len(texts)]]
    if any(attempt(text) is Verdict.PASSED for text in texts):
        return Verdict.CHEATED, reply | {"stderr": CAUGHT}
    return outcome, reply | {"control": control if texts else Control.NONE}


def _step(
    stage: str, *argv: str, address_space: bool = False, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """What inside/steps.py starts. What reserves memory without using it cannot have its address space limited."""
    return {"stage": stage, "argv": argv, "limit_address_space": address_space, "environment": environment or {}}


def _word() -> str:
    return secrets.token_hex(8)[:15]


_TELL_SH = """_rerankjax_tell() { printf '%s\\0' "$1" >&200; IFS= read -r -N 1 -u 201 _; }
"""


def _sh(boxes: Boxes, task: Task) -> Judged:
    """Bash: where its tests decide, the last line, which only a script that was not left reaches, says a word."""
    word = _word()
    say = f"\n_status=$?; printf '%s\\0' {word} >&200; exit $_status\n" if task.own_word else ""
    text = f"{_TELL_SH if task.expected else ''}{task.text}{say}"
    steps = [_step("run", toolchains.BASH, "program.sh", address_space=True)]
    return run(boxes("programs"), "sh", task, {"files": {"program.sh": text}, "encodings": {}, "steps": steps}, word)


def _php(boxes: Boxes, task: Task) -> Judged:
    """PHP: a fork of a warm one, which says by itself that the last line has run."""
    box = boxes("php")
    body = {"source": task.text.encode(errors="replace").decode()}
    if not task.own_word:
        return run(box, "php", task, body, "")
    reply = box.ask(body | {"keep_output": False})
    if reply["killed"]:
        return Verdict(reply["killed"]), reply
    return verdict("php", reply, reply["said"] == "passed", box.limits.cpu_seconds), reply


_GXX = (toolchains.GXX, "-std=c++17", "-w", "-fuse-ld=mold")
_HEADERS = re.compile(r'(?:\s|//[^\n]*\n|#include\s*[<"](?!bits/)[\w./]+[>"])*#include\s*<bits/stdc\+\+\.h>')
_ALL_HEADERS = ("-include", toolchains.CPP_HEADERS)
_USUAL_HEADERS = ("-isystem", toolchains.CPP_USUAL, "-include", f"{toolchains.CPP_USUAL}/headers.h")


def _cpp(boxes: Boxes, task: Task) -> Judged:
    """C++: with the headers that MultiPL-E's programs begin with compiled already.

    At first only the usual ones: what compiles with those means the same with all, unless it brings in the whole
    namespace and so may call something that the others declare, too.
    """
    word = _word()
    harness: tuple[str, ...] = ()
    if task.expected_output is None:
        harness = (toolchains.CPP_WORD, "-Wl,--wrap=main") if task.own_word else (toolchains.CPP_HARNESS,)
    headers = _ALL_HEADERS if _HEADERS.match(task.text) else ()
    usual = _USUAL_HEADERS if headers and "using namespace" not in task.text else headers

    def attempt(included: tuple[str, ...]) -> Judged:
        tell = ("-include", toolchains.CPP_TELL) if task.expected and not included else ()
        compile_step = _step("compile", *_GXX, *included, *tell, "program.cpp", *harness, "-o", "program")
        steps = [compile_step, _step("run", "./program", address_space=True)]
        body = {"files": {"program.cpp": task.text}, "encodings": {}, "steps": steps}
        return run(boxes("programs"), "cpp", task, body, word)

    judged = attempt(usual)
    return attempt(headers) if judged[0] is Verdict.COMPILE_ERROR and headers != usual else judged


def _js(boxes: Boxes, task: Task, *, fast: bool = False) -> Judged:
    """JavaScript: a node of its own.

    fast: a node that others shared may find that a test fails; whatever else it finds does not count.
    """
    return _node(boxes, "js", task, fast)


def _ts(boxes: Boxes, task: Task, *, fast: bool = False) -> Judged:
    """TypeScript: checked and compiled by a warm compiler, then as JavaScript, its tests taken apart only there."""
    compiled = _compiled(boxes, "tsc", task.text.encode(errors="replace"), {"program": str, "log": str})
    if isinstance(compiled, tuple):
        return compiled
    if not compiled["succeeded"]:
        return Verdict.COMPILE_ERROR, {"stdout": compiled["log"], "exit_code": 2}
    text = compiled["program"]
    split = apart("js", text, "") if task.own_word and not task.together else None
    if split is None:
        return _node(boxes, "ts", Task(text, None, task.expected_output, task.stdin), fast)
    outcome, reply = _node(boxes, "ts", Task(split.program, split.expected), fast)
    return outcome, reply | {"control": Control.APART}


def _node(boxes: Boxes, language: str, task: Task, fast: bool) -> Judged:
    if fast and task.expected:
        with contextlib.suppress(BoxDiedError, LimitError):
            frames = boxes("fast").compile(task.text.encode(errors="replace")).get("told")
            wrong = first_wrong(language, task, frames if isinstance(frames, list) else [])
            if wrong:
                return Verdict.FAILED, {"stderr": wrong, "exit_code": 1}
    box = boxes("programs")
    tell = ["--require", f"{box.inside}/node/tell.js"] if task.expected else []
    called = f"{box.inside}/node/harness.js" if task.own_word else "program.js"
    node = _step("run", toolchains.NODE, f"--max-old-space-size={box.limits.memory_bytes >> 20}", *tell, called)
    body = {"files": {"program.js": task.text}, "encodings": {}, "steps": [node]}
    return run(box, language, task, body, _word())


def _java(boxes: Boxes, task: Task) -> Judged:
    """Java: compiled by a warm javac, run by a JVM of its own."""
    by_output = task.expected_output is not None
    source = (b"o" if by_output else b"j") + task.text.encode(errors="replace")
    compiled = _compiled(boxes, "javac", source, {"classes": dict, "log": str})
    if isinstance(compiled, tuple):
        return compiled
    if not compiled["succeeded"]:
        return Verdict.COMPILE_ERROR, {"stderr": compiled["log"], "exit_code": 1}
    classes = {str(name): _decoded(code) for name, code in compiled["classes"].items()}
    with_main = [name for name, code in classes.items() if b"([Ljava/lang/String;)V" in code]
    name = _main_class(task.text, with_main) if by_output else "Problem"
    heap = f"-Xmx{boxes('programs').limits.memory_bytes * 7 // 8}"
    archive = f"-XX:SharedArchiveFile={toolchains.JAVA_ARCHIVE}"
    classpath = f"{toolchains.JAVA_CLASSES}:{toolchains.JAVATUPLES}:program.jar"
    called = ("rerankjax.Harness", name) if task.own_word else (name,)
    java = _step("run", toolchains.JAVA, *toolchains.JAVA_OPTIONS, heap, archive, "-ea", "-cp", classpath, *called)
    body = {"files": {"program.jar": _jar(classes)}, "encodings": {"program.jar": "latin-1"}, "steps": [java]}
    return run(boxes("programs"), "java", task, body, _word())


def _main_class(text: str, names: list[str]) -> str:
    """Of the classes that have a main the public one, or else the first."""
    public = re.search(r"\bpublic\s+(?:final\s+)?class\s+(\w+)", text)
    return public[1] if public and public[1] in names else next(iter(names), "Problem")


def _jar(classes: dict[str, bytes]) -> str:
    """One file, as latin-1: a program may have more classes than /tmp has files, and longer names."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as jar:
        for name, code in classes.items():
            jar.writestr(zipfile.ZipInfo(f"{name.replace('.', '/')}.class"), code)
    return data.getvalue().decode("latin-1")


def _cs(boxes: Boxes, task: Task) -> Judged:
    """C#: compiled by a warm mcs, run by a mono of its own."""
    compiled = _compiled(boxes, "mcs", task.text.encode(errors="replace"), {"program": str, "log64": str})
    if isinstance(compiled, tuple):
        return compiled
    if not compiled["succeeded"]:
        log = _decoded(compiled["log64"]).decode(errors="replace")
        newer = any(_NEWER_CSHARP.search(line[:LINE_LETTERS]) for line in task.text.splitlines()[:LINES])
        return Verdict.UNSUPPORTED if newer else Verdict.COMPILE_ERROR, {"stderr": log, "exit_code": 1}
    called = (toolchains.CSHARP_HARNESS, "program.exe") if task.own_word else ("program.exe",)
    environment = {"MONO_TRACE_LISTENER": "Console.Error", "MONO_PATH": os.path.dirname(toolchains.CSHARP_TELL)}
    files = {"program.exe": _decoded(compiled["program"]).decode("latin-1")}
    mono = _step("run", toolchains.MONO, *called, environment=environment)
    body = {"files": files, "encodings": {"program.exe": "latin-1"}, "steps": [mono]}
    return run(boxes("programs"), "cs", task, body, _word())


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text)
    except (ValueError, TypeError) as error:
        raise BoxDiedError(f"a compiler's reply is invalid: {error}") from None


# What any compiler that is well makes something of.
_TRIVIAL = {"tsc": b"", "javac": b"jclass A { }", "mcs": b"class A { static void Main() { } }"}


def _compiled(boxes: Boxes, kind: str, source: bytes, fields: dict[str, type]) -> dict[str, Any] | Judged:
    """What a warm compiler answers. A source that makes it pass a limit, or ends it twice, is no program.

    Raises BoxDiedError where the compiler then ends under any source.
    """
    box = boxes(kind)
    for _ in range(2):
        try:
            compiled = box.compile(source)
            if all(
                isinstance(compiled.get(name), expected) for name, expected in (fields | {"succeeded": bool}).items()
            ):
                return compiled
            ended = "its reply is invalid"
        except LimitError as error:
            return error.verdict, {"stderr": f"{kind}: {error}"}
        except BoxDiedError as error:
            ended = str(error)
    if box.compile(_TRIVIAL[kind]).get("succeeded") is not True:
        raise BoxDiedError(f"{kind} does not compile even a trivial program: {ended}")
    return Verdict.COMPILE_ERROR, {"stderr": f"{kind} failed twice on this program: {ended}", "exit_code": 1}


_ATTEMPTS: dict[str, Callable[..., Judged]] = {
    "sh": _sh,
    "php": _php,
    "cpp": _cpp,
    "js": _js,
    "ts": _ts,
    "java": _java,
    "cs": _cs,
}
BUT_PYTHON = tuple(_ATTEMPTS)
