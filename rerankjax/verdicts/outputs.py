"""What programs give for inputs that a prompt shows, or that are made from these: executed, but not judged.

Only prompts come here: what a problem's tests expect is nowhere near. Python only; of other languages, and where a
prompt shows no call, there is nothing to run.
"""

import ast
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rerankjax import sandbox
from rerankjax.problems.examples import Example, examples, made_calls
from rerankjax.verdicts import show
from rerankjax.verdicts.execution import SandboxConfig, run_programs

MOST_EXAMPLES = 8  # of a prompt: with these and MOST_MADE, all that a program shows fits what is kept of its output
MOST_MADE = 16
RAISED = "!"  # before the class of what a call raised
_HARNESS = """

import sys as _sys
_calls = {calls!r}
_out, _sys.stdout = _sys.__stdout__, open("/dev/null", "w")
_show = {{"__name__": "show"}}
exec(compile({show!r}, "show.py", "exec"), _show)
for _number, _call in enumerate(_calls):
    try:
        _value = _show["shown"](eval(_call, globals()))
    except BaseException as _error:
        _value = {raised!r} + type(_error).__name__[:60]
    _out.write({mark!r} + str(_number) + " " + _value + "\\n")
    _out.flush()
"""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The calls that a problem's programs are compared on; `expected` are the values of the first, None: not shown."""

    calls: tuple[str, ...]
    expected: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What one program gave for each call, as `show.shown` writes it; `RAISED` and a class; None: nothing came."""

    problem: str
    completion: str
    values: tuple[str | None, ...]


OutputCache = dict[tuple[str, str], Outputs]  # by problem and completion


def inputs_of(language: str, prompt: str, made: int) -> Inputs:
    """The examples in a prompt, and `made` more calls made from these; of no language but Python has it any."""
    prompt_examples: Sequence[Example] = examples(prompt)[:MOST_EXAMPLES] if language == "py" else ()
    calls = tuple(example.call for example in prompt_examples)
    return Inputs(calls + made_calls(calls, made), tuple(_canonical(example.expected) for example in prompt_examples))


def _canonical(expected: str | None) -> str | None:
    if expected is None:
        return None
    try:
        return show.shown(ast.literal_eval(expected))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return expected  # such as what is printed


def program_of(text: str, calls: Sequence[str]) -> sandbox.Program:
    """The program `text` with lines below it that print what it gives for each call."""
    source = Path(show.__file__).read_text(encoding="utf-8")
    below = _HARNESS.format(calls=list(calls), show=source, raised=RAISED, mark="\0")
    return sandbox.Program("py", text + below, expected_output="")


def values_of(printed: str, calls: int) -> tuple[str | None, ...]:
    """What `program_of`'s lines said. The program may have printed anything: each line is text and no more."""
    values: list[str | None] = [None] * calls
    for line in printed.split("\n"):
        number, _, value = line.rpartition("\0")[2].partition(" ")
        if "\0" in line and number.isascii() and number.isdigit() and len(number) < 4 and int(number) < calls:
            values[int(number)] = value[: show.SHOWN_CHARACTERS]
    return tuple(values)


def run_outputs(
    config: SandboxConfig,
    inputs: Mapping[str, Inputs],
    programs: Iterable[tuple[str, str]],
    source: Callable[[str, str], str],
    known: OutputCache,
    advance: Callable[[int], object] = lambda programs: None,
) -> tuple[OutputCache, int]:
    """The outputs of each (problem, completion), each run once, and how many were run: those in `known` are not.

    A program of a problem without inputs has no values. One under which the sandbox itself failed has none either.
    source: the program in a completion of a problem, both by text.
    """
    outputs: OutputCache = {}
    waiting: list[tuple[str, str]] = []

    def new() -> Iterator[tuple[int, sandbox.Program]]:
        for key in dict.fromkeys(programs):
            problem, completion = key
            calls = inputs[problem].calls
            if key in known or not calls:
                outputs[key] = known.get(key) or Outputs(problem, completion, ())
                advance(1)
            else:
                waiting.append(key)
                yield len(waiting) - 1, program_of(source(problem, completion), calls)

    for number, result in run_programs(config, new(), control="none"):
        problem, completion = waiting[number]
        values = values_of(result.stdout, len(inputs[problem].calls))
        outputs[waiting[number]] = Outputs(problem, completion, values)
        advance(1)
    return outputs, len(waiting)


def write_outputs(path: Path, outputs: Iterable[Outputs]) -> None:
    import pyarrow
    import pyarrow.parquet

    fields = [
        ("problem", pyarrow.string()),
        ("completion", pyarrow.string()),
        ("values", pyarrow.list_(pyarrow.string())),
    ]
    # Programs end in any order; the file does not depend on it.
    rows = sorted(map(dataclasses.asdict, outputs), key=lambda row: (row["problem"], row["completion"]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(fields)), path)


def read_outputs(path: Path) -> OutputCache:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    return {(row["problem"], row["completion"]): Outputs(**row | {"values": tuple(row["values"])}) for row in rows}
