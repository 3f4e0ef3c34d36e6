"""Java: x is an ArrayList<Long>. Of the imports of MultiPL-E's prompts the one that solutions need, and the atomics."""

from rerankjax.problems.languages.language import Language, each_alone

_EARLIER = "{ AtomicLong a = new AtomicLong(); x.replaceAll(v -> [value]); if (!x.isEmpty()) x.remove(0); }"

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
        "descending": ("x.sort(Collections.reverseOrder());", "Collections.sort(x);"),
        "unique": ("x = new ArrayList<>(new LinkedHashSet<>(x));", "x = new ArrayList<>(new TreeSet<>(x));"),
        "alternate": (
            "for (int i = 1; i < x.size(); i++) x.remove(i);",
            "for (int i = 0; i < x.size(); i++) x.remove(i);",
        ),
        "skip": (
            "x.subList(0, Math.min({k}, x.size())).clear();",
            "x.subList(0, Math.min({k} + 1, x.size())).clear();",
        ),
        "last": (
            "x.subList(0, Math.max(0, x.size() - {k})).clear();",
            "x.subList(0, Math.max(0, x.size() - {k})).clear(); if (!x.isEmpty()) x.remove(x.size() - 1);",
        ),
        "differences": (
            _EARLIER.replace("[value]", "v - a.getAndSet(v)"),
            _EARLIER.replace("[value]", "a.getAndSet(v) - v"),
        ),
        "totals": (
            "{ AtomicLong s = new AtomicLong(); x.replaceAll(v -> s.addAndGet(v)); }",
            "{ AtomicLong s = new AtomicLong(); x.replaceAll(v -> s.getAndAdd(v)); }",
        ),
        "positions": (
            "{ AtomicLong i = new AtomicLong(); x.replaceAll(v -> v * i.incrementAndGet()); }",
            "{ AtomicLong i = new AtomicLong(); x.replaceAll(v -> v * i.getAndIncrement()); }",
        ),
        "first": (
            "x.subList(Math.min({k}, x.size()), x.size()).clear();",
            "x.subList(Math.min({k} - 1, x.size()), x.size()).clear();",
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
