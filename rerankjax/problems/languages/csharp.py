"""C#: x is a List<long>. Of the lines that MultiPL-E's prompts begin with, those that solutions need."""

from rerankjax.problems.languages.language import Language, each_alone

CS = Language(
    prompt=(
        "using System;\nusing System.Diagnostics;\nusing System.Collections.Generic;\nusing System.Linq;\n"
        "class Problem {\n    // %s\n    // >>> F(%s)\n    // %s\n    public static long F(List<long> x) {\n"
    ),
    numbers="(new List<long>(new long[]{%s}))",
    empty="(new List<long>())",
    number="(long)%dL",
    answer="(%sL)",
    assertion="    Debug.Assert(F(%s) == %s);\n",
    tests="    }\n    public static void Main(string[] args) {\n%s    }\n\n}\n",
    indent="        ",
    end="",
    stop_tokens=("\n    }\n",),
    idioms={
        **each_alone(
            keep="x = x.Where(v => [test]).ToList();",
            drop="",
            each="x = x.Select(v => [value]).ToList();",
            magnitude="Math.Abs(%s)",
            lesser="Math.Min(v, {k})",
            greater="Math.Max(v, {k})",
        ),
        "reverse": ("x.Reverse();",),
        "tail": ("x = x.Skip(1).ToList();",),
        "front": ("x = x.Take(x.Count - 1).ToList();",),
        "rotate": ("x = x.Skip(1).Concat(x.Take(1)).ToList();",),
        "twice": ("x = x.Concat(x).ToList();",),
        "neighbours": ("x = x.Zip(x.Skip(1), (a, b) => a + b).ToList();",),
        "descending": (
            "x.Sort(); x.Reverse();",
            "x.Sort();",
        ),
        "unique": (
            "x = x.Distinct().ToList();",
            "x = x.Distinct().ToList(); x.Sort();",
        ),
        "alternate": ("x = x.Where((v, i) => i % 2 == 0).ToList();", "x = x.Where((v, i) => i % 2 == 1).ToList();"),
        "skip": ("x = x.Skip({k}).ToList();", "x = x.Skip({k} + 1).ToList();"),
        "last": (
            "x = x.Skip(x.Count - {k}).ToList();",
            "x = x.Take(x.Count - 1).Skip(x.Count - {k}).ToList();",
        ),
        "differences": (
            "x = x.Zip(x.Skip(1), (a, b) => b - a).ToList();",
            "x = x.Zip(x.Skip(1), (a, b) => a - b).ToList();",
        ),
        "totals": (
            "{ long s = 0; x = x.Select(v => s += v).ToList(); }",
            "{ long s = 0; x = x.Select(v => (s += v) - v).ToList(); }",
        ),
        "positions": ("x = x.Select((v, i) => v * (i + 1)).ToList();", "x = x.Select((v, i) => v * i).ToList();"),
        "first": ("x = x.Take({k}).ToList();", "x = x.Take({k} - 1).ToList();"),
        "append": ("x.Add({k});", "x.Insert(0, {k});"),
        "sum": ("return x.Sum();",),
        "count": ("return x.Count;",),
        "distinct": ("return x.Distinct().Count();",),
        "squares": ("return x.Sum(v => v * v);",),
        "least": ("return x.DefaultIfEmpty().Min();",),
        "head": ("return x.FirstOrDefault();",),
        "greatest": ("return x.DefaultIfEmpty().Max();", "return x.Max();"),
        "end": ("return x.LastOrDefault();", "return x.Last();"),
    },
)
