"""Python: x is a list. Its texts are the expressions of `kinds`."""

from collections.abc import Sequence

from rerankjax.problems.kinds import FINALS, STEPS, Kind
from rerankjax.problems.languages.language import Language


def _idioms(kinds: Sequence[Kind], before: str) -> dict[str, tuple[str, ...]]:
    codes = {k.name: (k.code, k.fault.code) if k.fault else (k.code,) for k in kinds}
    return {name: tuple(before + code for code in texts) for name, texts in codes.items()}


PY = Language(
    prompt='def f(x):\n    """%s\n    >>> f(%s)\n    %s\n    """\n',
    numbers="[%s]",
    empty="[]",
    number="%d",
    answer="%s",
    assertion="    assert candidate(%s) == %s\n",
    tests="\ndef check(candidate):\n%s\ncheck(f)\n",
    indent="    ",
    end="",
    stop_tokens=("\ndef", "\nclass", "\nif", "\n#", "\nprint"),
    idioms=_idioms(STEPS, "x = ") | _idioms(FINALS, "return "),
)
