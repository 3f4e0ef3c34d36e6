"""C++: x is a std::vector<long>."""

from rerankjax.problems.languages.language import Language, each_alone

CPP = Language(
    prompt="#include<assert.h>\n#include<bits/stdc++.h>\n// %s\n// >>> f(%s)\n// %s\nlong f(std::vector<long> x) {\n",
    numbers="(std::vector<long>({%s}))",
    empty="(std::vector<long>())",
    number="(long)%d",
    answer="(%s)",
    assertion="    assert(candidate(%s) == %s);\n",
    tests="}\nint main() {\n    auto candidate = f;\n%s}\n",
    indent="    ",
    end="",
    stop_tokens=("\n}",),
    idioms={
        **each_alone(
            keep="",
            drop="x.erase(std::remove_if(x.begin(), x.end(), [](long v) { return [test]; }), x.end());",
            each="for (long& v : x) v = [value];",
            magnitude="std::abs(%s)",
            lesser="std::min(v, {k}L)",
            greater="std::max(v, {k}L)",
        ),
        "reverse": ("std::reverse(x.begin(), x.end());",),
        "tail": ("if (x.size()) x.erase(x.begin());",),
        "front": ("if (x.size()) x.pop_back();",),
        "rotate": ("if (x.size()) std::rotate(x.begin(), x.begin() + 1, x.end());",),
        "twice": ("for (size_t i = 0, n = x.size(); i < n; i++) x.push_back(x[i]);",),
        "neighbours": (
            "{ long a = 0; for (long& v : x) v += std::exchange(a, v); } if (x.size()) x.erase(x.begin());",
        ),
        "descending": ("std::sort(x.rbegin(), x.rend());", "std::sort(x.begin(), x.end());"),
        "unique": (
            "for (size_t i = 0; i < x.size(); i++) x.erase(std::remove(x.begin() + i + 1, x.end(), x[i]), x.end());",
            "std::sort(x.begin(), x.end()); x.erase(std::unique(x.begin(), x.end()), x.end());",
        ),
        "alternate": (
            "for (size_t i = 1; i < x.size(); i++) x.erase(x.begin() + i);",
            "for (size_t i = 0; i < x.size(); i++) x.erase(x.begin() + i);",
        ),
        "skip": (
            "for (size_t i = 0; i < {k} && x.size(); i++) x.erase(x.begin());",
            "for (size_t i = 0; i <= {k} && x.size(); i++) x.erase(x.begin());",
        ),
        "last": (
            "while (x.size() > {k}) x.erase(x.begin());",
            "while (x.size() > {k}) x.erase(x.begin()); if (x.size()) x.pop_back();",
        ),
        "differences": (
            "{ long a = 0; for (long& v : x) v -= std::exchange(a, v); } if (x.size()) x.erase(x.begin());",
            "{ long a = 0; for (long& v : x) v = std::exchange(a, v) - v; } if (x.size()) x.erase(x.begin());",
        ),
        "totals": (
            "{ long a = 0; for (long& v : x) v = a += v; }",
            "{ long a = 0; for (long& v : x) v = (a += v) - v; }",
        ),
        "positions": (
            "{ long a = 0; for (long& v : x) v *= ++a; }",
            "{ long a = 0; for (long& v : x) v *= a++; }",
        ),
        "first": (
            "while (x.size() > {k}) x.pop_back();",
            "while (x.size() > {k} - 1) x.pop_back();",
        ),
        "append": ("x.push_back({k});", "x.insert(x.begin(), {k});"),
        "sum": ("return std::accumulate(x.begin(), x.end(), 0L);",),
        "count": ("return x.size();",),
        "distinct": ("return std::set<long>(x.begin(), x.end()).size();",),
        "squares": ("return std::inner_product(x.begin(), x.end(), x.begin(), 0L);",),
        "least": ("return x.empty() ? 0 : *std::min_element(x.begin(), x.end());",),
        "head": ("return x.empty() ? 0 : x.front();",),
        # at() throws where back() or * of an empty vector's max_element() might return anything, even the answer.
        "greatest": (
            "std::sort(x.rbegin(), x.rend()); return x.empty() ? 0 : x.at(0);",
            "std::sort(x.rbegin(), x.rend()); return x.at(0);",
        ),
        "end": ("return x.empty() ? 0 : x.at(x.size() - 1);", "return x.at(x.size() - 1);"),
    },
)
