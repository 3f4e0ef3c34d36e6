"""JavaScript, and TypeScript, which differs in its prompt and tests: x is an array."""

from rerankjax.problems.languages.language import Language, each_alone

_TESTS = "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = f;\n%s}\n\ntest();"

_IDIOMS = {
    **each_alone(
        keep="x = x.filter(v => [test]);",
        drop="",
        each="x = x.map(v => [value]);",
        magnitude="Math.abs(%s)",
        lesser="Math.min(v, {k})",
        greater="Math.max(v, {k})",
    ),
    "reverse": ("x.reverse();",),
    "tail": ("x.shift();",),
    "front": ("x.pop();",),
    "rotate": ("x.push(...x.splice(0, 1));",),
    "twice": ("x = [...x, ...x];",),
    "neighbours": ("x = x.slice(1).map((v, i) => v + x[i]);",),
    "descending": ("x.sort((a, b) => b - a);", "x.sort((a, b) => a - b);"),
    "unique": ("x = [...new Set(x)];", "x = [...new Set(x)].sort((a, b) => a - b);"),
    "alternate": ("x = x.filter((v, i) => i % 2 == 0);", "x = x.filter((v, i) => i % 2 == 1);"),
    "skip": ("x = x.slice({k});", "x = x.slice({k} + 1);"),
    "last": ("x = x.slice(-{k});", "x = x.slice(-{k}, -1);"),
    "differences": ("x = x.slice(1).map((v, i) => v - x[i]);", "x = x.slice(1).map((v, i) => x[i] - v);"),
    "totals": ("{ let s = 0; x = x.map(v => s += v); }", "{ let s = 0; x = x.map(v => (s += v) - v); }"),
    "positions": ("x = x.map((v, i) => v * (i + 1));", "x = x.map((v, i) => v * i);"),
    "first": ("x = x.slice(0, {k});", "x = x.slice(0, {k} - 1);"),
    "append": ("x.push({k});", "x.unshift({k});"),
    "sum": ("return x.reduce((a, b) => a + b, 0);",),
    "count": ("return x.length;",),
    "distinct": ("return new Set(x).size;",),
    "squares": ("return x.reduce((a, b) => a + b * b, 0);",),
    "least": ("return x.length ? Math.min(...x) : 0;",),
    "head": ("return x.length ? x[0] : 0;",),
    "greatest": ("return x.length ? Math.max(...x) : 0;", "return Math.max(...x);"),  # of nothing: -Infinity
    "end": ("return x.length ? x.pop() : 0;", "return x.pop();"),  # of nothing: undefined
}

JS = Language(
    prompt="//%s\n// >>> f(%s)\n// %s\nfunction f(x){\n",
    numbers="[%s]",
    empty="[]",
    number="%d",
    answer="%s",
    assertion="  assert.deepEqual(candidate(%s),%s);\n",
    tests=_TESTS,
    indent="    ",
    end="\n}",
    stop_tokens=("\nfunction ", "\n/*", "\n//", "\nconsole.log"),
    idioms=_IDIOMS,
)

TS = Language(
    prompt="//%s\n// >>> f(%s)\n// %s\nfunction f(x: number[]): number {\n",
    numbers="[%s]",
    empty="[]",
    number="%d",
    answer="%s",
    assertion="  assert.deepEqual(candidate(%s),%s);\n",
    tests="declare var require: any;\n" + _TESTS,
    indent="    ",
    end="\n}",
    stop_tokens=("\nfunction ", "\n/*", "\n//", "\nclass"),
    idioms=_IDIOMS,
)
