"""What goes into the sandbox and what comes out: programs, limits, verdicts."""

import dataclasses
import enum
import math

MIN_OPEN_FILES = 256  # two of them, near 200, are the harness's


class SandboxError(Exception):
    """The sandbox cannot contain programs here; the message says what is missing and what to do about it."""


class Verdict(enum.StrEnum):
    """What a program did. Only PASSED is a pass; UNSUPPORTED and SANDBOX_ERROR say nothing about the program."""

    PASSED = "passed"
    FAILED = "failed"  # a test failed, or the program ended (even with exit code 0) before its last test
    CHEATED = "caught by a control"  # it passes its tests in its own process, and what they ask is not what it computes
    COMPILE_ERROR = "compile error"
    RUNTIME_ERROR = "runtime error"
    TIMEOUT = "timeout"
    MEMORY_LIMIT = "memory limit"
    OUTPUT_LIMIT = "output limit"
    INPUT_LIMIT = "input limit"  # its source with its tests, or its standard input, is larger than `Limits` allows
    UNSUPPORTED = "unsupported"  # does not compile, and uses C# that is newer than the compiler here
    SANDBOX_ERROR = "sandbox error"  # a fault of ours or of this machine, never of the program's


class Control(enum.StrEnum):
    """What stands behind a pass."""

    APART = "apart"  # the program never had the expected values: what it computed was compared outside of it
    EVERY = "every"  # it fails whichever of its tests' expected values is made wrong
    ONE = "one"  # it fails when one expected value, chosen by a hash of the program, is made wrong
    NONE = "none"  # its own exit or last line; also for whatever is no pass


@dataclasses.dataclass(frozen=True)
class Program:
    """A program and what decides whether it passes.

    With `expected_output` None the program passes when `tests`, run after `source` in the same program as MultiPL-E
    does, all ran and none failed. A whole assembled program is a `source` with empty `tests`. Otherwise the program
    passes when, fed `stdin`, it exits with 0 and its output has the tokens of `expected_output`, numbers with a
    fraction or an exponent to a relative or absolute error of 1e-6.
    """

    language: str
    source: str
    tests: str = ""
    stdin: str = ""
    expected_output: str | None = None

    def __post_init__(self) -> None:
        for name in ("language", "source", "tests", "stdin"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"Program: {name} must be str, got {type(value).__name__}; decode it first")
        if self.tests and self.expected_output is not None:
            raise ValueError("Program: tests and expected_output are both set; give only one of them")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one program may use. The clock is `cpu_seconds`; `wall_seconds` only ends what sleeps or waits."""

    cpu_seconds: float = 15.0  # of all its processes together
    wall_seconds: float = 60.0
    memory_bytes: int = 1 << 30  # of all its processes together
    processes: int = 64  # threads count too
    open_files: int = 256
    file_bytes: int = 16 << 20  # one file
    tmp_bytes: int = 64 << 20  # all files in /tmp, and as much again in /dev/shm
    output_bytes: int = 8 << 20  # standard output and error together
    source_bytes: int = 4 << 20  # source and tests together
    stdin_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise ValueError(f"Limits: {field.name} is {value!r}; it must be above 0 and finite")
        if self.open_files < MIN_OPEN_FILES:
            raise ValueError(f"Limits: open_files is {self.open_files}; it must be at least {MIN_OPEN_FILES}")


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of the program at position `index` of the input. Of its output, the last 4,096 characters."""

    index: int
    verdict: Verdict
    exit_code: int | None  # None when a signal ended it
    signal: int | None
    stdout: str
    stderr: str
    wall_seconds: float
    cpu_seconds: float
    control: Control = Control.NONE
