"""Bash: the numbers are the positional parameters, which the last line of the prompt makes of the list."""

from rerankjax.problems.languages.language import Language, each_alone

SH = Language(
    prompt=("#!/bin/bash\n# %s\n# >>> $(f %s)\n# %s\n#\n# $1 is a space-separated list\nf() {\n    set -- $1\n"),
    numbers='"%s"',
    empty='""',
    number="%d",
    answer='"%s"',
    assertion="    [[ $(candidate %s) = %s ]]\n",
    tests='}\n\ncandidate() {\n    f "$@"\n}\n\nset -e\nrun_test() {\n%s}\n\nrun_test',
    indent="    ",
    end="",
    stop_tokens=("\n}",),
    separator=" ",
    idioms={
        **each_alone(
            keep="set -- $(for v; do (([test])) && echo $v; done)",
            drop="",
            each="set -- $(for v; do echo $(([value])); done)",
            magnitude="${%s#-}",
            lesser="v < {k} ? v : {k}",
            greater="v > {k} ? v : {k}",
        ),
        "absolute": ("set -- ${@#-}",),
        "distance": (
            "set -- $(for v; do echo $((v - {k})); done); set -- ${@#-}",
            "set -- $(for v; do echo $(({k} - v)); done)",
        ),
        "reverse": ("set -- $(printf '%s\\n' $@ | tac)",),
        "tail": ("shift",),
        "front": ("set -- $(printf '%s\\n' $@ | head -n -1)",),
        "rotate": ("set -- ${@:2} $1",),
        "twice": ("set -- $@ $@",),
        "neighbours": ("set -- $(for v; do echo $((a + v)); a=$v; done); shift",),
        "descending": ("set -- $(printf '%s\\n' $@ | sort -rn)", "set -- $(printf '%s\\n' $@ | sort -n)"),
        "unique": (
            "set -- $(printf '%s\\n' $@ | awk '!s[$0]++')",
            "set -- $(printf '%s\\n' $@ | sort -nu)",
        ),
        "alternate": ("set -- $(printf '%s\\n' $@ | sed -n 'p;n')", "set -- $(printf '%s\\n' $@ | sed -n 'n;p')"),
        "skip": ("set -- ${@:{k} + 1}", "set -- ${@:{k} + 2}"),
        "last": (
            "set -- $(printf '%s\\n' $@ | tail -n {k})",
            "set -- $(printf '%s\\n' $@ | tail -n {k} | head -n -1)",
        ),
        "differences": (
            "set -- $(for v; do echo $((v - a)); a=$v; done); shift",
            "set -- $(for v; do echo $((a - v)); a=$v; done); shift",
        ),
        "totals": (
            "set -- $(for v; do echo $((s += v)); done)",
            "set -- $(for v; do echo $((s)); ((s += v)); done)",
        ),
        "positions": (
            "set -- $(for v; do echo $((v * ++i)); done)",
            "set -- $(for v; do echo $((v * i++)); done)",
        ),
        "first": ("set -- ${@:1:{k}}", "set -- ${@:1:{k} - 1}"),
        "append": ("set -- $@ {k}", "set -- {k} $@"),
        "sum": ("for v; do ((s += v)); done; echo $((s))",),
        "count": ("echo $#",),
        "distinct": ("printf '%s\\n' $@ | sort -u | grep -c .",),
        "squares": ("for v; do ((s += v * v)); done; echo $((s))",),
        "least": ("printf '%s\\n' ${@:-0} | sort -n | head -n 1",),
        "head": ("echo ${1:-0}",),
        # Without a default: of nothing, the empty line.
        "greatest": ("printf '%s\\n' ${@:-0} | sort -n | tail -n 1", "printf '%s\\n' $@ | sort -n | tail -n 1"),
        "end": ("printf '%s\\n' ${@:-0} | tail -n 1", "printf '%s\\n' $@ | tail -n 1"),
    },
)
