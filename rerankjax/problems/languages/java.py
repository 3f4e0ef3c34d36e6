"""Java: x is an ArrayList<Long>. Of the imports of MultiPL-E's prompts the one that solutions need, and the atomics."""

from rerankjax.problems.languages.language import Language, each_alone

_EARLIER = "{ var a = new AtomicLong(); x.replaceAll(v -> [value]); if (!x.isEmpty()) x.remove(0); }"

JAVA = Language(
    prompt=(
        "import java.util.*;\nimport java.util.concurrent.atomic.*;\nclass Problem {\n"
        "    // %s\n    // >>> f(%s)\n    // %s\n    public static long f(ArrayList<Long> x) {\n"
    ),
    numbers="(new ArrayList<Long>(Arrays.asList(%s)))",
    empty="(new ArrayList<Long>(Arrays.asList()))",
    number="(long)%dl",
    answer="(%sl)",
    assertion="    assert(f(%s) == %s);\n",
    tests="    }\n    public static void main(String[] args) {\n%s    }\n\n}\n",
    indent="        ",
    end="",
    stop_tokens=("\n    }\n",),
    idioms={
        **each_alone(
            keep="",
            drop="x.removeIf(v -> [test]);",
            each="x.replaceAll(v -> [value]);",
            magnitude="Math.abs(%s)",
            lesser="Math.min(v, {k})",
            greater="Math.max(v, {k})",
        ),
        "reverse": ("Collections.reverse(x);",),
        "tail": ("if (!x.isEmpty()) x.remove(0);",),
        "front": ("if (!x.isEmpty()) x.remove(x.size() - 1);",),
        "rotate": ("Collections.rotate(x, -1);",),
        "twice": ("x.addAll(x);",),
        "neighbours": (_EARLIER.replace("[value]", "v + a.getAndSet(v)"),),
        "descending": (
            "Collections.sort(x); Collections.reverse(x);",
            "Collections.sort(x);",
        ),
        "unique": (
            "{ var s = new HashSet<Long>(); x.removeIf(v -> !s.add(v)); }",
            "x = new ArrayList<>(new TreeSet<>(x));",
        ),
        "alternate": (
            "for (int i = 1; i < x.size(); i++) x.remove(i);",
            "for (int i = 0; i < x.size(); i++) x.remove(i);",
        ),
        "skip": (
            "for (int i = 0; i < {k} && !x.isEmpty(); i++) x.remove(0);",
            "for (int i = 0; i <= {k} && !x.isEmpty(); i++) x.remove(0);",
        ),
        "last": (
            "while (x.size() > {k}) x.remove(0);",
            "while (x.size() > {k}) x.remove(0); if (!x.isEmpty()) x.remove(x.size() - 1);",
        ),
        "differences": (
            _EARLIER.replace("[value]", "v - a.getAndSet(v)"),
            _EARLIER.replace("[value]", "a.getAndSet(v) - v"),
        ),
        "totals": (
            "{ var a = new AtomicLong(); x.replaceAll(v -> a.addAndGet(v)); }",
            "{ var a = new AtomicLong(); x.replaceAll(v -> a.getAndAdd(v)); }",
        ),
        "positions": (
            "{ var a = new AtomicLong(); x.replaceAll(v -> v * a.incrementAndGet()); }",
            "{ var a = new AtomicLong(); x.replaceAll(v -> v * a.getAndIncrement()); }",
        ),
        "first": (
            "while (x.size() > {k}) x.remove(x.size() - 1);",
            "while (x.size() > {k} - 1) x.remove(x.size() - 1);",
        ),
        "append": ("x.add({k}L);", "x.add(0, {k}L);"),
        "sum": ("return x.stream().mapToLong(v -> v).sum();",),
        "count": ("return x.size();",),
        "distinct": ("return x.stream().distinct().count();",),
        "squares": ("return x.stream().mapToLong(v -> v * v).sum();",),
        "least": ("return x.isEmpty() ? 0 : Collections.min(x);",),
        "head": ("return x.isEmpty() ? 0 : x.get(0);",),
        "greatest": ("return x.isEmpty() ? 0 : Collections.max(x);", "return Collections.max(x);"),
        "end": ("return x.isEmpty() ? 0 : x.get(x.size() - 1);", "return x.get(x.size() - 1);"),
    },
)
