"""The made-up family: problems about lists of integers, put together from kinds of step.

A problem is 2 or 3 steps and a final reduction. Its *composition* is the order of their kinds; constants and wording
are not part of it. Dev and test problems come from compositions that no train problem has, so solving them takes
putting known steps together anew.
"""

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rerankjax.problems.kinds import FINALS, STEPS, Kind
from rerankjax.problems.languages import SYNTAX, shared_stop_tokens
from rerankjax.problems.problem import Problem

SPLITS = ("train", "dev", "test")
# Inputs tried before a problem is given up: more than there are tests, for some faults show on few.
INPUTS_TRIED = 48


@dataclass(frozen=True)
class Call:
    """One line of a program: a kind with its constant (0 where it takes none), written right or with its fault."""

    kind: Kind
    constant: int
    faulty: bool = False


Program = tuple[Call, ...]
Inputs = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Family:
    """Problems by split, and for each name the reference program and the inputs of the tests."""

    train: tuple[Problem, ...]
    dev: tuple[Problem, ...]
    test: tuple[Problem, ...]
    references: Mapping[str, Program]
    inputs: Mapping[str, Inputs]


def run(program: Program, x: Sequence[int]) -> int | None:
    """What the program returns for x, or None where it raises (an unguarded reduction of an empty list)."""
    value = list(x)
    try:
        for call in program:
            step = call.kind.fault.run if call.faulty and call.kind.fault else call.kind.run
            value = step(value, call.constant)
    except (ValueError, IndexError):
        return None
    return value  # type: ignore[return-value]  # the last call is a final reduction


def completion(program: Program, language: str = "py") -> str:
    """The program as the lines that complete a prompt in `language`."""
    form = SYNTAX[language]
    texts = [form.idioms[c.kind.name][bool(c.faulty and c.kind.fault)] for c in program]
    lines = [text.replace("{k}", str(call.constant)) for text, call in zip(texts, program, strict=True)]
    return "\n".join(form.indent + line for line in lines) + form.end


def composition(program: Program) -> tuple[str, ...]:
    return tuple(call.kind.name for call in program)


def split_of(names: tuple[str, ...], seed: int, held_out: float) -> str:
    """The split that owns a composition: each of dev and test owns half of the held-out share.

    A digest decides, so that a composition's split depends on the seed alone and not on what else was drawn.
    """
    digest = hashlib.blake2b(f"{seed} {' '.join(names)}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return "dev" if share < held_out / 2 else "test" if share < held_out else "train"


def make_family(
    seed: int,
    train: int,
    dev: int,
    test: int,
    *,
    held_out: float = 0.15,
    lengths: Sequence[int] = (2, 3),
    constants: Sequence[int] = (2, 3, 4, 5, 6, 7),
    max_faults: int = 2,
    tests: int = 11,
    steps: Sequence[Kind] = STEPS,
    finals: Sequence[Kind] = FINALS,
    languages: Sequence[str] = ("py",),
) -> Family:
    """Makes `train`, `dev` and `test` problems, no composition in two splits, no program twice, whatever the language.

    The same arguments give the same problems on every machine, and a larger count only adds problems at the end.
    held_out: share of the compositions that dev and test get. lengths: numbers of steps, equally likely.
    max_faults: most kinds with a fault in one problem; with more, 16 samples would seldom hold a right one.
    constants: one digit each, so that a constant is one token. tests: assertions a problem.
    steps, finals: kinds to draw from; those that one of the languages has no text for are passed over.
    languages: each problem has one, in turn, and stop tokens that serve all.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {held_out}; the default is 0.15.")
    if tests < 4:
        raise ValueError(f"tests must be at least 4 to show every fault, got {tests}; the default is 11.")
    if not all(2 <= k <= 9 for k in constants):
        raise ValueError(f"constants must lie from 2 to 9, got {tuple(constants)}; the default is 2 to 7.")
    if not languages or len(set(languages)) < len(languages) or not set(languages) <= SYNTAX.keys():
        raise ValueError(f"languages must be one or more of {', '.join(SYNTAX)}, each once, got {tuple(languages)}.")
    steps, finals = (
        [kind for kind in kinds if all(kind.name in SYNTAX[name].idioms for name in languages)]
        for kinds in (steps, finals)
    )
    stop_tokens = shared_stop_tokens(languages)
    problems: dict[str, list[Problem]] = {}
    references: dict[str, Program] = {}
    inputs: dict[str, Inputs] = {}
    for split, count in zip(SPLITS, (train, dev, test), strict=True):
        rng = random.Random(f"rerankjax lists {seed} {split}")
        problems[split] = []
        seen: set[tuple[tuple[str, int], ...]] = set()
        made: Counter[str] = Counter()
        weights = [1.0] * len(steps)
        attempts_left = 2000 + 400 * count
        while len(problems[split]) < count:
            if (attempts_left := attempts_left - 1) < 0:
                raise ValueError(
                    f"{split}: found {len(problems[split])} of {count} problems; ask for fewer, or give more lengths, "
                    "steps, finals or constants."
                )
            kinds = [*rng.choices(steps, weights, k=rng.choice(lengths)), rng.choice(finals)]
            reference = tuple(Call(kind, rng.choice(constants) if kind.takes_constant else 0) for kind in kinds)
            key = tuple((call.kind.name, call.constant) for call in reference)
            if (
                sum(kind.fault is not None for kind in kinds) > max_faults
                or key in seen
                or split_of(composition(reference), seed, held_out) != split
                or (chosen := _telling_inputs(reference, tests, rng)) is None
            ):
                continue
            seen.add(key)
            # Kinds whose problems are often refused are drawn more often, so that all become about equally common.
            made.update(composition(reference))
            weights = [1 / (1 + made[step.name]) ** 2 for step in steps]
            number = len(problems[split])
            language = languages[number % len(languages)]
            tag = "" if tuple(languages) == ("py",) else f"{language}_"
            problem = _problem(f"lists_{tag}{split}_{number:05d}", language, stop_tokens, reference, chosen, rng)
            problems[split].append(problem)
            references[problem.name], inputs[problem.name] = reference, chosen
    return Family(tuple(problems["train"]), tuple(problems["dev"]), tuple(problems["test"]), references, inputs)


def with_faults(reference: Program) -> Iterator[Program]:
    """Every way to write the program with one or more of its kinds' faults."""
    ways = [(False, True) if call.kind.fault else (False,) for call in reference]
    for faulty in itertools.product(*ways):
        if any(faulty):
            yield tuple(Call(c.kind, c.constant, f) for c, f in zip(reference, faulty, strict=True))


def _telling_inputs(reference: Program, count: int, rng: random.Random) -> Inputs | None:
    """Inputs for the tests such that they catch every program `with_faults`, or None if that cannot be had.

    A fault that never shows (an unguarded max of a list that is never empty) would be a label against the text, and
    a problem with always the same answer is none: such problems are not made.
    """
    alive = list(with_faults(reference))
    telling: list[tuple[int, ...]] = []
    spare: list[tuple[int, ...]] = []
    for x in _candidate_inputs(reference, rng):
        expected = run(reference, x)
        survivors = [program for program in alive if run(program, x) == expected]
        (telling if len(survivors) < len(alive) else spare).append(x)
        alive = survivors
        if not alive and len(telling) + len(spare) >= count:
            break
    chosen = tuple((telling + spare)[:count])
    answers = [run(reference, x) for x in chosen]
    dull = len(set(answers)) < 3 or max(abs(answer or 0) for answer in answers) >= 10**6
    return None if alive or len(telling) > count or dull else chosen


def _candidate_inputs(reference: Program, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """The empty list, then lists of up to 10 with small, negative, repeated and boundary values."""
    constants = [call.constant for call in reference]
    boundaries = [k + d for k in constants for d in (-1, 0, 0, 1)] + [-k for k in constants]
    seen: set[tuple[int, ...]] = {()}
    yield ()
    for _ in range(INPUTS_TRIED):
        x: list[int] = []
        for _ in range(rng.randint(1, 10)):
            draw = rng.random()
            if draw < 0.5:
                x.append(rng.randint(-9, 9))
            else:
                x.append(rng.choice(boundaries if draw < 0.8 or not x else x))
        if tuple(x) not in seen:
            seen.add(tuple(x))
            yield tuple(x)


def _problem(
    name: str, language: str, stop_tokens: tuple[str, ...], reference: Program, inputs: Inputs, rng: random.Random
) -> Problem:
    english = " ".join(rng.choice(call.kind.english).format(k=call.constant) for call in reference)
    # A short example costs few tokens; one whose answer is 0 would tell little.
    examples = [[rng.randint(0, 9) for _ in range(rng.randint(2, 3))] for _ in range(12)]
    answer, example = min(((run(reference, x), x) for x in examples), key=lambda e: (e[0] == 0, len(f"{e[0]}{e[1]}")))
    form = SYNTAX[language]
    prompt = form.prompt % (english, form.list_of(example), form.answer % answer)
    tests = form.tests % "".join(form.assertion % (form.list_of(x), form.answer % run(reference, x)) for x in inputs)
    digest = hashlib.blake2b((prompt + tests).encode(), digest_size=4).hexdigest()
    return Problem(f"{name}_{digest}", language, prompt, tests, stop_tokens)
