"""The eight languages of MultiPL-E, as far as the made-up family is written in them; by MultiPL-E's short names."""

from collections.abc import Sequence

from rerankjax.problems.languages.bash import SH
from rerankjax.problems.languages.cpp import CPP
from rerankjax.problems.languages.csharp import CS
from rerankjax.problems.languages.java import JAVA
from rerankjax.problems.languages.javascript import JS, TS
from rerankjax.problems.languages.php import PHP
from rerankjax.problems.languages.python import PY

SYNTAX = {"py": PY, "cpp": CPP, "java": JAVA, "php": PHP, "ts": TS, "cs": CS, "sh": SH, "js": JS}


def shared_stop_tokens(languages: Sequence[str]) -> tuple[str, ...]:
    """Stop tokens for problems in all of `languages`: every language's, but not what another's solutions end with.

    One decoding loop knows one set. "\n}", the only stop token of C++ and Bash, closes a solution in PHP.
    """
    ends = [SYNTAX[language].end for language in languages]
    tokens = dict.fromkeys(token for language in languages for token in SYNTAX[language].stop_tokens)
    return tuple(token for token in tokens if not any(token in end for end in ends))
