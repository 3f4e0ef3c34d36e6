"""Whether a program printed what it should have."""

import math

TOLERANCE = 1e-6  # relative or absolute, whichever is the more lenient


def matches(printed: str, expected: str) -> bool:
    """Whether both have the same tokens; where a number with a fraction or exponent is expected, nearly so."""
    tokens, wanted = printed.split(), expected.split()
    return len(tokens) == len(wanted) and all(map(_same, tokens, wanted))


def _same(token: str, wanted: str) -> bool:
    if token == wanted:
        return True
    if not any(mark in wanted for mark in ".eE"):  # a whole number is exact, however large
        return False
    if "_" in token:  # which float() would pass over
        return False
    try:
        return math.isclose(float(token), float(wanted), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except ValueError:
        return False
