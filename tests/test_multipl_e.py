"""MultiPL-E's files in, its results files out: in its format, in order, resumed, and nothing run on bad input."""

import gzip
import io
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from rich.console import Console

from rerankjax.sandbox import Limits, Program, Result, Verdict, box, multipl_e, pool, toolchains
from rerankjax.sandbox import __main__ as command

REPOSITORY = pathlib.Path(__file__).parent.parent
DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the repository")

PROMPTS = {"py": "def add_one(x: int) -> int:\n", "sh": "#!/bin/bash\nadd_one() {\n"}
TESTS = {
    "py": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(4) == 5\n\n"
    "def test_check():\n    check(add_one)\n\ntest_check()\n",
    "sh": '}\n\ncandidate() {\n    add_one "$@"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate "1") = "2" ]]\n'
    '    [[ $(candidate "4") = "5" ]]\n}\n\nrun_test',
}
ENDINGS = {  # completion -> status, exit code, verdict
    "py": {
        "    return x + 1": ("OK", 0, "passed"),
        "    return x": ("Exception", 1, "failed"),
        "    while True: pass": ("Timeout", -1, "timeout"),
        "    return (": ("SyntaxError", 1, "compile error"),
        "    import ctypes; ctypes.string_at(0)": ("Exception", -signal.SIGSEGV, "runtime error"),
        "    raise SystemExit(0)": ("Exception", 0, "failed"),
        "    return '\ud800'": ("SyntaxError", 1, "compile error"),  # JSON can hold what UTF-8 cannot
    },
    "sh": {
        "    echo $(($1 + 1))": ("OK", 0, "passed"),
        "    echo $1": ("Exception", 1, "failed"),
        "    while true; do :; done": ("Timeout", -1, "timeout"),
        "    if": ("SyntaxError", 2, "compile error"),
    },
}
RIGHT, WRONG = list(ENDINGS["py"])[:2]
RESULT_KEYS = ["program", "timestamp", "stdout", "stderr", "exit_code", "status"]  # MultiPL-E's; then ours
OUR_KEYS = ["verdict", "control", "wall_seconds", "cpu_seconds"]


def problem(*completions: str, language: str = "py", name: str = "add_one", **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "language": language,
        "temperature": 0.2,
        "prompt": PROMPTS.get(language, ""),
        "stop_tokens": ["\ndef"],
        "tests": TESTS.get(language, ""),
        "completions": list(completions),
    } | fields


def write(path: pathlib.Path, *objects: Any) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, objects)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(path: pathlib.Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def evaluate(source: pathlib.Path, output: pathlib.Path, *flags: str) -> int:
    return command.main([f"--{'dir' if source.is_dir() else 'file'}", str(source), "--output-dir", str(output), *flags])


def written(directory: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def statuses(path: pathlib.Path) -> list[str]:
    return [result["status"] for result in read(path)["results"]]


# The format


def test_results_are_multipl_es_key_by_key(tmp_path: pathlib.Path) -> None:
    inputs = {
        "py.json": problem(*ENDINGS["py"]),
        "below/sh.json.gz": problem(*ENDINGS["sh"], language="sh"),
        "none.json": problem(),
    }
    for name, content in inputs.items():
        write(tmp_path / "in" / name, content)
    write(tmp_path / "in" / "old.results.json", {"not": "a problem"})
    start = int(time.time())
    assert evaluate(tmp_path / "in", tmp_path / "out", "--recursive", "--cpu-seconds", "1", "--max-workers", "2") == 0
    assert written(tmp_path / "out") == ["below/sh.results.json.gz", "py.results.json"]
    for language, path in (("py", "py.results.json"), ("sh", "below/sh.results.json.gz")):
        found, given = read(tmp_path / "out" / path), problem(language=language)
        results, _ = found.pop("results"), given.pop("completions")
        assert found == given
        for result, (completion, (status, exit_code, verdict)) in zip(results, ENDINGS[language].items(), strict=True):
            assert list(result) == RESULT_KEYS + OUR_KEYS
            assert result["program"] == f"{PROMPTS[language]}{completion}\n{TESTS[language]}"
            assert (result["status"], result["exit_code"], result["verdict"]) == (status, exit_code, verdict)
            assert result["control"] == ("apart" if status == "OK" else "none")
            assert start <= result["timestamp"] <= time.time()
            assert type(result["timestamp"]) is type(result["exit_code"]) is int
            assert type(result["stdout"]) is type(result["stderr"]) is str
            assert 0 <= result["cpu_seconds"] < 3
            assert (result["cpu_seconds"] > 1) == (status == "Timeout")
            assert result["wall_seconds"] > 0
        assert "assert candidate(1) == 2" in results[1]["stderr"] or language == "sh"


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_each_row_has_its_results_file(tmp_path: pathlib.Path, suffix: str) -> None:
    rows = [problem(RIGHT, WRONG, name="HumanEval/0", language="python"), problem(WRONG, name="b"), problem(name="c")]
    rows[0] |= {"prompt": PROMPTS["py"], "tests": TESTS["py"]}
    assert evaluate(write(tmp_path / f"rows.{suffix}", *rows), tmp_path / "out") == 0
    assert written(tmp_path / "out") == ["HumanEval_0.results.json.gz", "b.results.json.gz"]
    assert statuses(tmp_path / "out" / "HumanEval_0.results.json.gz") == ["OK", "Exception"]
    assert read(tmp_path / "out" / "HumanEval_0.results.json.gz")["language"] == "python"


@needs_data
def test_statuses_are_those_of_multipl_es_evaluator(tmp_path: pathlib.Path) -> None:
    with gzip.open(DATA / "multipl_e" / "programs.jsonl.gz", "rt") as file:
        recorded = {row["name"]: row for row in map(json.loads, file) if row["language"] == "js"}
    wanted = {"OK": 3, "AssertionError": 3, "Exception": 2, "SyntaxError": 2}
    chosen = []
    for row in map(json.loads, (DATA / "multipl_e" / "humaneval-js.jsonl").read_text().splitlines()):
        fenced = re.search(r"```\w*\n(.*?)```", row["llm_solution"], re.DOTALL)
        completion = fenced[1].partition("\nconsole.log")[0].rstrip("\n") + "\n"  # cut at its stop token
        expected = recorded[row["name"]]
        if f"{completion}\n{row['tests']}" == expected["program"] and wanted[expected["evaluator_status"]]:
            wanted[expected["evaluator_status"]] -= 1
            chosen.append(row | {"prompt": "", "completions": [completion]})
    assert len(chosen) == 10
    assert evaluate(write(tmp_path / "js.jsonl", *chosen), tmp_path / "out") == 0
    for row in chosen:
        (result,) = read(tmp_path / "out" / f"{row['name']}.results.json.gz")["results"]
        expected = recorded[row["name"]]
        said = result["status"], result["exit_code"]
        assert said == (expected["evaluator_status"], expected["evaluator_exit"]), row["name"]


def test_every_verdict_but_a_sandbox_error_has_a_status() -> None:
    said = {verdict: multipl_e.status("py", verdict, "") for verdict in Verdict if verdict != "sandbox error"}
    assert [verdict for verdict, status in said.items() if status == "OK"] == [Verdict.PASSED]
    assert set(said.values()) == {"OK", "Timeout", "SyntaxError", "Exception"}
    assert said[Verdict.UNSUPPORTED] == "SyntaxError"
    with pytest.raises(ValueError, match="sandbox error is not a result"):
        multipl_e.status("py", Verdict.SANDBOX_ERROR, "")


@pytest.mark.parametrize("language", ["js", "ts"])
def test_javascript_has_two_statuses_more(language: str) -> None:
    for name in ("AssertionError", "ReferenceError"):
        assert multipl_e.status(language, Verdict.RUNTIME_ERROR, f"{name}: no") == name
        assert multipl_e.status("py", Verdict.RUNTIME_ERROR, f"{name}: no") == "Exception"
        assert multipl_e.status(language, Verdict.TIMEOUT, f"{name}: no") == "Timeout"
    assert multipl_e.status(language, Verdict.RUNTIME_ERROR, "TypeError: no") == "Exception"


def test_exit_code_is_a_number_however_the_program_ended() -> None:
    def exit_code(verdict: Verdict, exit_code: int | None, signal: int | None) -> int:
        result = Result(0, verdict, exit_code, signal, "", "", 0.0, 0.0)
        return multipl_e.result_object(Program("py", ""), result, 0)["exit_code"]

    assert exit_code(Verdict.PASSED, 0, None) == 0
    assert exit_code(Verdict.RUNTIME_ERROR, 3, None) == 3
    assert exit_code(Verdict.RUNTIME_ERROR, None, 11) == -11
    assert exit_code(Verdict.MEMORY_LIMIT, None, None) == -1
    assert [exit_code(Verdict.TIMEOUT, *end) for end in ((0, None), (None, 9), (None, None))] == [-1, -1, -1]


# C#


LISTS = "Debug.Assert(F((5L)).Equals((new List<long>(new long[]{(long)1L}))));\nDebug.Assert(G(1L).Equals((2L)));\n"
REPAIRED = LISTS.replace("F((5L)).Equals", "F((5L)).SequenceEqual")


def test_repaired_csharp_compares_lists_and_nothing_else_by_their_entries() -> None:
    assert multipl_e.repair_csharp_lists(LISTS) == REPAIRED != LISTS


@pytest.mark.parametrize(("choice", "tests"), [("as-shipped", LISTS), ("repaired", REPAIRED)])
def test_results_say_how_csharp_compares_lists(tmp_path: pathlib.Path, choice: str, tests: str) -> None:
    rows = [problem("x", name=language, language=language, tests=LISTS) for language in ("cs", "java")]
    file = write(tmp_path / "rows.jsonl", *rows)
    csharp, java = multipl_e.read_evaluated(file, tmp_path, choice)
    assert csharp.programs == (Program("cs", "x\n", tests),)
    assert csharp.results["csharp_lists"] == choice
    assert csharp.results["tests"] == LISTS
    assert java.programs == (Program("java", "x\n", LISTS),)
    assert "csharp_lists" not in java.results


def test_results_with_lists_compared_otherwise_are_not_gone_on_with(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "a.json", problem("x", "y", language="cs", tests=LISTS))
    kept = {"results": [{"program": f"x\n{LISTS}", "status": "Exception", "exit_code": 1}]}
    write(tmp_path / "a.results.json", kept)
    with pytest.raises(ValueError, match=r"a.results.json: has results with C# lists as-shipped, but .* is repaired"):
        list(multipl_e.read_evaluated(file, tmp_path, "repaired"))
    (evaluated,) = multipl_e.read_evaluated(file, tmp_path, "as-shipped")
    assert evaluated.results == {**kept, "csharp_lists": "as-shipped"}


# Going on


def test_only_what_is_missing_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Program] = []

    def spy(programs: Any, **options: Any) -> Any:
        return pool.run((ran.append(program) or program for program in programs), **options)

    monkeypatch.setattr(command, "run", spy)
    file = write(tmp_path / "a.json.gz", problem(RIGHT, WRONG, f"{RIGHT}\n"))
    # Not what running it would give: kept is kept. MultiPL-E's own results have none of our keys.
    kept = {"program": f"{PROMPTS['py']}{RIGHT}\n{TESTS['py']}", "timestamp": 1, "stdout": "kept", "stderr": ""}
    kept |= {"exit_code": 1, "status": "Exception"}
    metadata = {"name": "add_one", "language": "py", "note": "kept too"}
    output = write(tmp_path / "a.results.json.gz", metadata | {"results": [kept]})
    assert evaluate(file, tmp_path) == 0
    assert read(output) | {"results": []} == metadata | {"results": []}
    assert read(output)["results"][0] == kept
    assert statuses(output) == ["Exception", "Exception", "OK"]
    assert len(ran) == 2
    before = output.stat()
    assert evaluate(file, tmp_path) == 0
    assert len(ran) == 2
    assert output.stat() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_a_prefix_and_goes_on(tmp_path: pathlib.Path, number: int) -> None:
    first = write(tmp_path / "a.json", problem(RIGHT, "    import time; time.sleep(50)", WRONG))
    write(tmp_path / "b.json", problem(WRONG + " "))
    arguments = ["--dir", str(tmp_path), "--output-dir", str(tmp_path / "out"), "--max-workers", "2"]
    started = [sys.executable, "-m", "rerankjax.sandbox", *arguments]
    process = subprocess.Popen(
        started,
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell runs in the background ignores it, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "out" / "b.results.json").exists():  # so all but the sleeping one have ended
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "the same command resumes" in said
    assert "Traceback" not in said
    assert written(tmp_path / "out") == ["a.results.json", "b.results.json"]
    prefix = read(tmp_path / "out" / "a.results.json")["results"]
    assert [result["status"] for result in prefix] == ["OK"]
    write(first, problem(RIGHT, RIGHT, WRONG))  # without the sleep
    assert command.main(arguments) == 0
    assert read(tmp_path / "out" / "a.results.json")["results"][:1] == prefix
    assert statuses(tmp_path / "out" / "a.results.json") == ["OK", "OK", "Exception"]


def test_a_failing_sandbox_is_no_result(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = pool.JUDGES["py"]

    def dies(boxes: Any, program: Program, *, control: Any) -> Any:
        if "dies" in program.source:
            raise box.BoxDiedError("gone")
        return judge(boxes, program, control=control)

    write(tmp_path / "in" / "a.json", problem(RIGHT, f"{RIGHT}  # dies", WRONG))
    write(tmp_path / "in" / "b.json", problem(f"{WRONG}  # dies", WRONG))
    with monkeypatch.context() as patched:
        patched.setitem(pool.JUDGES, "py", dies)
        assert evaluate(tmp_path / "in", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert re.search(r"a\.json, completion 2: sandbox: the box died 3 times.*gone", said)
    assert "b.json, completion 1: " in said
    assert "failed on 2 programs" in said
    assert written(tmp_path / "out") == ["a.results.json"]
    assert statuses(tmp_path / "out" / "a.results.json") == ["OK"]
    assert evaluate(tmp_path / "in", tmp_path / "out") == 0
    assert statuses(tmp_path / "out" / "a.results.json") == ["OK", "OK", "Exception"]
    assert statuses(tmp_path / "out" / "b.results.json") == ["Exception", "Exception"]


# The command


def test_table_has_the_mean_over_problems(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    def results(*statuses: str) -> list[dict[str, Any]]:
        return [{"program": f"{PROMPTS['py']}\n{TESTS['py']}", "status": status} for status in statuses]

    said = {"a": ["OK"], "b": ["OK", "Exception", "Timeout", "Exception"]}
    for name, ended in said.items():
        write(tmp_path / f"{name}.json", problem(*[""] * len(ended)))
        write(tmp_path / f"{name}.results.json", problem() | {"results": results(*ended)})
    assert evaluate(tmp_path, tmp_path) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["OK", "without", "control", "2"] in lines
    wanted = {"problems": "2", "programs": "5", "OK": "2", "Exception": "2", "Timeout": "1", "pass@1": "0.625"}
    assert [line for line in lines if len(line) == 2] == [list(row) for row in wanted.items()]


def test_table_fits_a_narrow_terminal() -> None:
    names = ["OK", "AssertionError", "ReferenceError", "SyntaxError", "Timeout", "Exception"]
    ended = {pathlib.Path(language): (language, names * 10_000, 0) for language in toolchains.WITH_TOOLCHAIN}
    out = io.StringIO()
    Console(file=out, width=80).print(command._table(ended))
    assert "…" not in out.getvalue()
    assert {*names, "pass@1", *toolchains.WITH_TOOLCHAIN} <= set(out.getvalue().split())


def test_flags_reach_the_sandbox(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(command, "run", lambda programs, **options: calls.append(options) or (_ for _ in ()))
    file = write(tmp_path / "a.json", problem(RIGHT))
    assert evaluate(file, tmp_path) == 0
    flags = "--max-workers 3 --cpu-seconds 20.5 --memory-bytes 5000000 --control every --uncontained --fast"
    assert evaluate(file, tmp_path, *flags.split()) == 0
    assert calls == [
        {"workers": None, "limits": Limits(), "control": "one", "contained": True, "fast": False},
        {"workers": 3, "limits": Limits(20.5, 82.0, 5_000_000), "control": "every", "contained": False, "fast": True},
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", problem(RIGHT) | {"prompt": None}, "a.json: field 'prompt' must be str, got None"),
        ("a.json", {"name": "a", "completions": ["x"]}, "a.json: field 'language' is missing"),
        ("a.json", {"results": []}, "a.json: field 'completions' is missing"),
        ("a.json", problem(RIGHT, completions="x"), "a.json: field 'completions' must be list"),
        ("a.json", [problem(RIGHT)], "a.json: expected a JSON object with named fields, got list"),
        ("a.json", problem(RIGHT, language="cobol"), "a.json: field 'language': language is 'cobol'; use one of py"),
        ("a.jsonl", problem(RIGHT, name=""), "a.jsonl, row 2: field 'name' is empty"),
        ("a.jsonl", problem(RIGHT, name="first"), "a.jsonl, row 2 and .*row 1 both write their results to .*; rename"),
        (
            "a.jsonl.gz",
            problem(RIGHT, completions=["x", 1]),
            "row 2: field 'completions' must contain only strings; number 2",
        ),
        ("a.jsonl.gz", problem(RIGHT, tests=1), "a.jsonl.gz, row 2: field 'tests' must be str, got 1"),
        ("a.txt", problem(RIGHT), "a.txt: its name must end in one of .json, "),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name, content, said
) -> None:
    monkeypatch.setattr(command, "run", None)
    rows = [problem(RIGHT, name="first"), content] if "jsonl" in name else [content]
    assert evaluate(write(tmp_path / name, *rows), tmp_path / "out") == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([{}] * 3, "has 3 results, more than the 2 completions; choose another --output-dir, or remove"),
        ([{"status": "OK"}], "result 1: field 'program' is missing"),
        ([{"status": "OK", "program": "x"}], "result 1 is for a different program than completion 1; choose another"),
        (["OK"], "field 'results' must contain only objects; number 1 is 'OK'"),
        (None, "field 'results' must be list"),
    ],
)
def test_results_that_do_not_belong_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results, said
) -> None:
    monkeypatch.setattr(command, "run", None)
    output = write(tmp_path / "a.results.json", problem() | {"results": results})
    before = output.read_bytes()
    assert evaluate(write(tmp_path / "a.json", problem(RIGHT, WRONG)), tmp_path) == 2
    assert f"{output}" in (error := capsys.readouterr().err)
    assert said in error
    assert output.read_bytes() == before


def test_files_that_cannot_be_read_are_named(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write(tmp_path / "whole.json.gz", problem(RIGHT)).read_bytes()
    for name, data in {
        "cut.json.gz": whole[:-20],
        "plain.json.gz": b"{}",
        "half.json": b'{"name": ',
        "rows.jsonl": b"\n\n{",
        "latin.json": b'{"\xe9": 1}',
        "empty.json": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert evaluate(tmp_path / name, tmp_path / "out") == 2
        assert re.search(rf"{name}(, row 3)?: .*was the file cut off\?", capsys.readouterr().err)
    (tmp_path / "bare" / "below").mkdir(parents=True)
    for source, said in (
        (tmp_path / "absent.json", "No such file"),
        (tmp_path / "bare", "no file ends in .json, .json.gz, .jsonl, .jsonl.gz; use --recursive"),
    ):
        assert evaluate(source, tmp_path / "out") == 2
        assert said in capsys.readouterr().err


def test_missing_toolchains_are_all_named_before_anything_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run", None)
    monkeypatch.setattr(toolchains, "check", toolchains.check.__wrapped__)
    for language in ("sh", "php"):
        monkeypatch.setitem(toolchains._NEEDS, language, {f"/nonexistent/{language}": f"apt-get install {language}"})
    rows = [problem("x", language=language, name=language) for language in ("py", "sh", "php")]
    assert evaluate(write(tmp_path / "a.jsonl", *rows), tmp_path / "out") == 2
    said = capsys.readouterr().err
    for language in ("sh", "php"):
        assert f"language '{language}' lacks /nonexistent/{language} (apt-get install {language})" in said


@pytest.mark.parametrize(
    "flags",
    [
        "--output-dir o",
        "--file a.json",
        "--file a.json --dir . --output-dir o",
        "--file a.json --output-dir o --recursive",
        "--file a.json --output-dir o --max-workers 0",
        "--file a.json --output-dir o --cpu-seconds inf",
        "--file a.json --output-dir o --memory-bytes 1.5",
        "--file a.json --output-dir o --csharp-lists other",
    ],
)
def test_flags_that_make_no_sense_are_refused(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(flags.split())
    assert "error: " in capsys.readouterr().err
