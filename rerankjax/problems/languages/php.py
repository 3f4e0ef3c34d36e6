"""PHP: $x is an array with the keys 0, 1, 2 and so on."""

from rerankjax.problems.languages.language import Language, each_alone

PHP = Language(
    prompt="<?php\n// %s\n// >>> f(%s)\n// %s\nfunction f($x) {\n",
    numbers="array(%s)",
    empty="array()",
    number="%d",
    answer="%s",
    assertion='    if (candidate(%s) !== %s) { throw new Exception("Test failed!"); }\n',
    tests=("function candidate(...$args) {\n    return f(...$args);\n}\n\nfunction test(): void {\n%s}\n\ntest();"),
    indent="    ",
    end="\n}",
    stop_tokens=("\nfunction", "\n?>", "\n//", "\n#"),
    idioms={
        **each_alone(
            keep="$x = array_values(array_filter($x, fn($v) => [test]));",
            drop="",
            each="$x = array_map(fn($v) => [value], $x);",
            magnitude="abs(%s)",
            lesser="min(v, {k})",
            greater="max(v, {k})",
            variable="$v",
        ),
        "reverse": ("$x = array_reverse($x);",),
        "tail": ("array_shift($x);",),
        "front": ("array_pop($x);",),
        "rotate": ("$x = array_merge(array_slice($x, 1), array_slice($x, 0, 1));",),
        "twice": ("$x = array_merge($x, $x);",),
        "neighbours": ("$a = 0; foreach ($x as $i => $v) { $x[$i] = $v + $a; $a = $v; } array_shift($x);",),
        "descending": ("rsort($x);", "sort($x);"),
        "unique": ("$x = array_values(array_unique($x));", "$x = array_unique($x); sort($x);"),
        "alternate": (
            "$x = array_column(array_chunk($x, 2), 0);",
            "$x = array_column(array_chunk($x, 2), 1);",
        ),
        "skip": ("$x = array_slice($x, {k});", "$x = array_slice($x, {k} + 1);"),
        "last": ("$x = array_slice($x, -{k});", "$x = array_slice($x, -{k}, -1);"),
        "differences": (
            "$a = 0; foreach ($x as $i => $v) { $x[$i] = $v - $a; $a = $v; } array_shift($x);",
            "$a = 0; foreach ($x as $i => $v) { $x[$i] = $a - $v; $a = $v; } array_shift($x);",
        ),
        "totals": (
            "$a = 0; foreach ($x as $i => $v) $x[$i] = $a += $v;",
            "$a = 0; foreach ($x as $i => $v) $x[$i] = ($a += $v) - $v;",
        ),
        "positions": (
            "foreach ($x as $i => $v) $x[$i] = $v * ($i + 1);",
            "foreach ($x as $i => $v) $x[$i] = $v * $i;",
        ),
        "first": ("$x = array_slice($x, 0, {k});", "$x = array_slice($x, 0, {k} - 1);"),
        "append": ("$x[] = {k};", "array_unshift($x, {k});"),
        "sum": ("return array_sum($x);",),
        "count": ("return count($x);",),
        "distinct": ("return count(array_unique($x));",),
        "squares": ("return array_sum(array_map(fn($v) => $v * $v, $x));",),
        "least": ("return $x ? min($x) : 0;",),
        "head": ("return $x ? $x[0] : 0;",),
        "greatest": ("return $x ? max($x) : 0;", "return max($x);"),
        "end": ("return $x ? end($x) : 0;", "return end($x);"),  # of nothing: false
    },
)
