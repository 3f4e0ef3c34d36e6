"""Labelled rows to train and measure rerankers on: prompts with candidates, some of them right.

A row's fields determine its kind:

    prompt, chosen, rejected                 a preference: texts, or conversations as TRL has them
    instruction, input, chosen, rejected     the same, as AceCodePair-300K and LLaMA-Factory name it
    prompt, chosen: [...], rejected: [...]   RewardBench 2: the first ones are right, the others wrong
    prompt, candidates, passed               executed samples: our export's examples.jsonl
    prompt, tests, results                   MultiPL-E's results files, with the programs in them
"""

import dataclasses
from typing import Any, NamedTuple

from rerankjax.problems.jsonl import field
from rerankjax.sandbox.multipl_e import REPAIRED, repair_csharp_lists

MAX_CHARACTERS = 1_000_000  # of one text: no context holds more, and a row of megabytes is a mistake
KINDS = "prompt, chosen, rejected; prompt, candidates, passed; or MultiPL-E's prompt, tests, results"


class Message(NamedTuple):
    role: str
    content: str


Prompt = str | tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The candidates of one row. A conversation's candidates are the assistant's last messages.

    executed: the labels are verdicts on samples of one model, so that best-of-n selection is meaningful; False: a
    preference, whose candidates were chosen to be compared. subset: RewardBench's. greedy: whether the model's greedy
    answer passes, None if the row does not say.
    """

    where: str
    name: str
    prompt: Prompt
    candidates: tuple[str, ...]
    passed: tuple[bool, ...]
    executed: bool
    subset: str = ""
    greedy: bool | None = None


def read_labelled(where: str, record: dict[str, Any]) -> Labelled:
    """The row that a record's fields give; null fields count as missing, and unknown fields are ignored.

    Raises:
        ValueError: one line that names `where`, the field and the remedy.
    """
    record = {name: value for name, value in record.items() if value is not None}
    preference = {"chosen", "rejected"} & record.keys()
    samples = {"candidates", "completions", "passed"} & record.keys()
    if bool(preference) + bool(samples) + ("results" in record) > 1:
        mixed = sorted([*preference, *samples, *({"results"} & record.keys())])
        raise ValueError(f"{where}: fields {mixed} belong to several kinds of row; a row needs {KINDS}.")
    if preference:
        labelled = _preference(where, record)
    elif samples:
        labelled = _samples(where, record)
    elif "results" in record:
        labelled = _results(where, record)
    else:
        raise ValueError(f"{where}: fields {sorted(record)} match no known kind of row; a row needs {KINDS}.")
    if not labelled.prompt:
        raise ValueError(f"{where}: field 'prompt' is empty; give the text that the candidates answer.")
    return labelled


def _preference(where: str, record: dict[str, Any]) -> Labelled:
    for name in ("chosen", "rejected"):
        if name not in record:
            raise ValueError(f"{where}: field {name!r} is missing; the row has {sorted(record)}.")
        if record[name] in ("", []):
            raise ValueError(f"{where}: field {name!r} is empty; give the answer, or drop the row.")
    chosen, rejected = record["chosen"], record["rejected"]
    if _is_conversation(chosen) or _is_conversation(rejected):
        prompt, right, wrong = _conversations(where, record)
    else:
        prompt = _prompt(where, record)
        right, wrong = (_texts(where, name, record[name]) for name in ("chosen", "rejected"))
    if set(right) & set(wrong):
        raise ValueError(f"{where}: fields 'chosen' and 'rejected' have the same text; drop the row.")
    passed = (True,) * len(right) + (False,) * len(wrong)
    subset = field(record, where, "subset", str) if "subset" in record else ""
    return Labelled(where, _name(where, record), prompt, right + wrong, passed, False, subset)


def _conversations(where: str, record: dict[str, Any]) -> tuple[Prompt, tuple[str, ...], tuple[str, ...]]:
    """The prompt, and the chosen and the rejected last message. The prompt may be in the conversations alone."""
    chosen, rejected = (_messages(where, name, record[name]) for name in ("chosen", "rejected"))
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1].role != "assistant":
            raise ValueError(
                f"{where}: field {name!r} ends with a message of {turns[-1].role!r}; it must end with the assistant's."
            )
    if chosen[:-1] != rejected[:-1]:
        raise ValueError(
            f"{where}: fields 'chosen' and 'rejected' differ before their last messages; a pair needs one prompt."
        )
    shared = chosen[:-1]
    if not shared:
        prompt = _prompt(where, record)
        shared = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    elif _is_conversation(record.get("prompt")):  # the prompt, then the turns that both conversations share
        asked = _messages(where, "prompt", record["prompt"])
        shared = shared if shared[: len(asked)] == asked else asked + shared
    return shared, (chosen[-1].content,), (rejected[-1].content,)


def _samples(where: str, record: dict[str, Any]) -> Labelled:
    given = sorted({"candidates", "completions"} & record.keys())
    if len(given) != 1:
        raise ValueError(
            f"{where}: needs exactly one of the fields 'candidates' and 'completions'; the row has {given}."
        )
    if "passed" not in record:
        raise ValueError(
            f"{where}: field 'passed' is missing; run the candidates with `rerankjax execute`, and give the results."
        )
    candidates = _texts(where, given[0], field(record, where, given[0], list))
    if not candidates:
        raise ValueError(f"{where}: field {given[0]!r} is empty; give the candidates, or drop the row.")
    passed = field(record, where, "passed", list)
    for number, value in enumerate(passed, start=1):
        if type(value) is not bool:
            raise ValueError(f"{where}: field 'passed' must contain only true and false; number {number} is {value!r}.")
    if len(passed) != len(candidates):
        raise ValueError(f"{where}: field 'passed' has {len(passed)} entries for {len(candidates)} candidates.")
    greedy = field(record, where, "greedy", bool) if "greedy" in record else None
    name, prompt = _name(where, record), _prompt(where, record)
    return Labelled(where, name, prompt, candidates, tuple(passed), True, "", greedy)


def _results(where: str, record: dict[str, Any]) -> Labelled:
    """MultiPL-E's results hold whole programs: the prompt, the completion, a line end and the tests."""
    prompt, tests = _text(where, "prompt", field(record, where, "prompt", str)), field(record, where, "tests", str)
    if record.get("csharp_lists") == REPAIRED:
        tests = repair_csharp_lists(tests)
    candidates, passed = [], []
    for number, result in enumerate(field(record, where, "results", list), start=1):
        there = f"{where}: field 'results', number {number}"
        if not isinstance(result, dict):
            raise ValueError(f"{there} must be an object, got {result!r:.60}.")
        program, status = (field(result, there, name, str) for name in ("program", "status"))
        if not (program.startswith(prompt) and program.endswith("\n" + tests)):
            raise ValueError(f"{there}: field 'program' must begin with the row's prompt and end with its tests.")
        candidates.append(_text(where, "results", program[len(prompt) : len(program) - len(tests) - 1]))
        passed.append(status == "OK")
    if not candidates:
        raise ValueError(f"{where}: field 'results' is empty; run `rerankjax execute` again, or remove the file.")
    return Labelled(where, _name(where, record), prompt, tuple(candidates), tuple(passed), True)


def _name(where: str, record: dict[str, Any]) -> str:
    named = record.get("name", record.get("id"))
    return str(named) if isinstance(named, str | int) else where


def _prompt(where: str, record: dict[str, Any]) -> Prompt:
    if "prompt" not in record and "instruction" in record:
        parts = [_text(where, name, record[name]) for name in ("instruction", "input") if record.get(name)]
        return "\n".join(parts)
    if "prompt" not in record:
        raise ValueError(f"{where}: field 'prompt' is missing; the row has {sorted(record)}.")
    prompt = record["prompt"]
    return _messages(where, "prompt", prompt) if isinstance(prompt, list) else _text(where, "prompt", prompt)


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    several = len(values) > 1
    return tuple(_text(where, name, v, number if several else 0) for number, v in enumerate(values, start=1))


def _text(where: str, name: str, value: Any, number: int = 0) -> str:
    place = f"{where}: field {name!r}" + (f", number {number}," if number else "")
    if not isinstance(value, str):
        raise ValueError(f"{place} must be a string, got {value!r:.60}; correct that row.")
    if len(value) > MAX_CHARACTERS:
        raise ValueError(f"{place} has {len(value)} characters, more than {MAX_CHARACTERS}; drop that row.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} is not valid Unicode ({error.reason}); write it again as UTF-8.") from error
    return value


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _messages(where: str, name: str, value: Any) -> tuple[Message, ...]:
    if not _is_conversation(value):
        raise ValueError(
            f"{where}: field {name!r} must be a list of messages with role and content, got {value!r:.60}."
        )
    messages = []
    for number, message in enumerate(value, start=1):
        there = f"{where}: field {name!r}, message {number}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{there} needs a string as its role, got {message!r:.60}.")
        messages.append(Message(message["role"], _text(where, name, message.get("content"), number)))
    return tuple(messages)
