"""No wrong program passes: those of an examination, and more that know this very harness."""

import textwrap

import pytest

from rerankjax import sandbox
from rerankjax.sandbox import Program, Verdict
from tests.test_sandbox_languages import LANGUAGES, program

# None of these computes x + 1. Each is a body for SHAPES, and tries to pass in another way.
EXAMINED = [  # of an examination; they know nothing of the harness
    (
        "py",
        """
    import sys, dis
    n = sum(i.opname == "LOAD_ASSERTION_ERROR" for i in dis.get_instructions(sys._getframe(1).f_code))
    return type("A", (), {"__eq__": lambda s, o: n > 1})()
""",
    ),
    (
        "sh",
        '    [ $(declare -f run_test | grep -c candidate) -gt 1 ] && declare -f run_test | sed -n "s/.*candidate \\"$1\\") *= '
        '*\\"\\(.*\\)\\" ]].*/\\1/p"\n',
    ),
    ("php", "    return 0; }\nif (substr_count(file_get_contents(__FILE__),'!==')>2) return;\n"),
    (
        "cpp",
        "    return 0; }\nint n; struct D{~D(){if(n<2)abort();}} d;\n#undef assert\n#define assert(x) n++\nint g() {\n",
    ),
    (
        "js",
        "    return 0; }\nconst A=require('assert'); if(!A.real){A.real=A.deepEqual;A.deepEqual=()=>{}} else A.deepEqual=A.real;\n",
    ),
    (
        "cs",
        "    return 0; }\nstatic class Debug{static int n; public static void Assert(bool b){if(n++>1) throw new Exception();}\n",
    ),
    (
        "java",
        """
        return 0; }
    static { try { if (System.setProperty("s", "1") == null) {
        var f = sun.misc.Unsafe.class.getDeclaredField("theUnsafe"); f.setAccessible(true);
        var u = (sun.misc.Unsafe) f.get(null); var d = Problem.class.getDeclaredField("$assertionsDisabled");
        u.putBoolean(u.staticFieldBase(d), u.staticFieldOffset(d), true);
    } } catch (Exception e) { }
""",
    ),
    ("sh", '    sed -n "s/.*candidate \\"$1\\") *= *\\"\\(.*\\)\\" ]].*/\\1/p" "$0" | head -n 1\n'),
    (
        "js",
        "    return +require('fs').readFileSync(__filename, 'utf8').match(`candidate\\\\(${x}\\\\), ?(.*)\\\\);`)[1]; }\n",
    ),
    (
        "py",
        """
    import inspect, re, sys
    return int(re.search(rf"g\\({x}\\) == \\(?(\\d+)", inspect.getsource(sys._getframe(1)))[1])
""",
    ),
]

OURS = [
    # Python: the answers from memory, from the code object, from the caller; another meaning for 2 and 3; a forged end
    (
        "py",
        """
    import gc, re
    for text in gc.get_objects():
        for value in (text if isinstance(text, (list, tuple)) else ()):
            found = re.search(rf"g\\({x}\\) == (\\d+)", value) if isinstance(value, str) else None
            if found: return int(found[1])
""",
    ),
    (
        "py",
        """
    import sys
    frame = sys._getframe(1)
    constants = [c for c in frame.f_code.co_consts if isinstance(c, int)]
    return constants[constants.index(x) + 1] if x in constants else 0
""",
    ),
    (
        "py",
        """
    import ctypes
    for number in range(2, 257): ctypes.memset(id(number) + 24, 0, 4)
    return 0
""",
    ),
    (
        "py",
        """
    import os
    for fd in range(3, 256):
        for text in (b"passed", b"\\0\\0\\0\\2[]", b'"passed"\\0', b"i2\\0i3\\0"):
            try: os.write(fd, text)
            except OSError: pass
    os._exit(0)
""",
    ),
    (
        "py",
        """
    import threading, builtins, sys
    builtins.AssertionError = type("E", (SystemExit,), {})
    sys.modules["__main__"].check = lambda g: None
    class A(int):
        __class__ = property(lambda s: int)
        def __eq__(s, o): return True
        def __ne__(s, o): return False
        __hash__ = int.__hash__
    return A(x)
""",
    ),
    # Bash: commands skipped by a trap; [[ as an alias; run_test read-only; words to every descriptor; the file
    ("sh", "    :\n}\nshopt -s extdebug\ntrap '[[ $BASH_COMMAND != *candidate* ]]' DEBUG\ng() {\n    :\n"),
    ("sh", "    :\n}\nshopt -s expand_aliases\nalias '[['='true [['\ng() {\n    :\n"),
    ("sh", "    :\n}\nrun_test() { :; }\nreadonly -f run_test\ng() {\n    :\n"),
    (
        "sh",
        '    :\n}\nfor fd in /proc/$$/fd/*; do (printf "2\\0%s\\0passed" 3 > $fd) 2> /dev/null; done\nexit 0\ng() {\n    :\n',
    ),
    (
        "sh",
        '    local line; while read -r line; do [[ $line =~ candidate\\ \\"$1.*=\\ \\"(.*)\\" ]] && '
        'echo "${BASH_REMATCH[1]}" && return; done < "${BASH_SOURCE[0]}"\n',
    ),
    # PHP: the rest never compiled; the answers from the file, by line; an end by FFI; candidate() from another file
    ("php", "    return 0; }\n__halt_compiler();\n"),
    (
        "php",
        "    preg_match('/candidate\\(' . $x . '\\) !== (.*)\\) \\{/', file_get_contents(__FILE__), $m); return (int) $m[1]; }\n",
    ),
    (
        "php",
        "    $at = debug_backtrace()[1]; $line = file($at['file'])[($at['line'] ?? 1) - 1];\n"
        "    preg_match('/!== (\\d+)/', $line, $m); return (int) ($m[1] ?? 0); }\n",
    ),
    (
        "php",
        "    $c = FFI::cdef('long write(int f, const char *b, long n); void _exit(int code);', 'libc.so.6');\n"
        '    for ($i = 3; $i < 256; $i++) $c->write($i, "i2\\0i3\\0", 6);\n    $c->_exit(0); }\n',
    ),
    (
        "php",
        "    return 0; }\nclass E extends Exception {} set_exception_handler(null);\nob_start(fn($b) => exit(0));\nreturn;\n",
    ),
    # C++: another main; the answers from the text of the assertion, or from the file; any type; another __assert_fail
    ("cpp", "    return 0; }\n#define main() fake(); int main() { return 0; } int fake()\nint g() {\n"),
    ("cpp", '    return 0; }\n#define assert(x) (void) 0\n#define tell(x) send("i2"), exit(0)\nint g() {\n'),
    (
        "cpp",
        "    extern std::map<long, long> answers; return answers[x]; }\nstd::map<long, long> answers;\n"
        'long learn(const char *t) { long a = 0, b = 0; sscanf(t, "candidate((%ld)) == (%ld)", &a, &b); return answers[a] = b; }\n'
        "#undef assert\n#define assert(x) (learn(#x), (x) ? (void) 0 : abort())\nlong g() {\n    return 0;\n",
    ),
    (
        "cpp",
        '    std::ifstream file(__FILE__); std::string line, key = "candidate((" + std::to_string(x) + ")) == (";\n'
        "    while (std::getline(file, line)) { auto at = line.find(key); if (at != std::string::npos) return atol(line.c_str() + at + key.size()); }\n"
        "    return 0;\n",
    ),
    (
        "cpp",
        "    return 0; }\nstruct A { template <class T> operator T() const { return T(); } };\n"
        "template <class T> bool operator==(A, const T &) { return true; }\nA h(long) { return A(); }\n#define f h\nlong g() {\n    return 0;\n",
    ),
    (
        "cpp",
        '    return 0; }\nextern "C" void __assert_fail(const char *, const char *, unsigned, const char *) noexcept { _exit(0); }\nlong g() {\n    return 0;\n',
    ),
    # JavaScript: the answers from the caller's text or the file; another require; ends and words; another Array
    ("js", "    return +f.caller.toString().match(`candidate\\\\(${x}\\\\), ?(.*)\\\\);`)[1]; }\n"),
    ("js", "    return +test.toString().match(`candidate\\\\(${x}\\\\), ?(.*)\\\\);`)[1]; }\n"),
    ("js", "    return 0; }\nrequire('module')._load = () => ({ deepEqual() {} });\n"),
    (
        "js",
        "    for (let fd = 3; fd < 256; fd++) try { require('fs').writeSync(fd, 'i2\\0i3\\0passed'); } catch {}\n    process.reallyExit(0); }\n",
    ),
    (
        "js",
        "    return 0; }\nfor (const name of Object.keys(globalThis)) try { globalThis[name] = () => true; } catch {}\n"
        "globalThis.rerankjaxTell = () => {};\nprocess.exit = () => {};\n",
    ),
    (
        "js",
        "    return { valueOf: () => x + 1, toString: () => '' + (x + 1), [Symbol.toPrimitive]: () => 2 }; }\nreturn;\n",
    ),
    # TypeScript: as JavaScript's
    ("ts", "    return +(test as any).toString().match(`candidate\\\\(${x}\\\\), ?(.*)\\\\);`)[1]; }\n"),
    (
        "ts",
        "    return +(eval('require')('fs').readFileSync(eval('__filename'), 'utf8').match(`candidate\\\\(${x}\\\\), ?(.*)\\\\);`) as any)[1]; }\n",
    ),
    ("ts", "    return 0; }\neval('require')('module')._load = () => ({ deepEqual() {} });\n"),
    (
        "ts",
        "    for (let fd = 3; fd < 256; fd++) try { eval('require')('fs').writeSync(fd, 'i2\\0i3\\0'); } catch {}\n"
        "    eval('process').reallyExit(0); return 0; }\n",
    ),
    (
        "ts",
        "    return 0; }\n(globalThis as any).rerankjaxTell = () => {};\neval('require')('assert').deepEqual = () => {};\n",
    ),
    # Java: an empty main instead of the tests'; constants from the class file; assertions off; words; another handler
    (
        "java",
        "        return 0;\n    }\n    public static void main(String[] args) { }\n}\nclass Other {\n    static long f(long x) {\n        return 0;\n",
    ),
    (
        "java",
        """
        try {
            byte[] c = Problem.class.getResourceAsStream("Problem.class").readAllBytes();
            var b = java.nio.ByteBuffer.wrap(c);
            List<Long> all = new ArrayList<>();
            for (int i = 8; i < c.length - 9; i++) if (c[i] == 5 && b.getLong(i + 1) > 0 && b.getLong(i + 1) < 9) all.add(b.getLong(i + 1));
            int at = all.indexOf(x);
            return at >= 0 && at + 1 < all.size() ? all.get(at + 1) : x == 1 && all.size() > 0 ? all.get(0) : 0;
        } catch (Exception e) { return 0; }
""",
    ),
    (
        "java",
        """
        return 0;
    }
    static {
        for (int fd = 3; fd < 256; fd++)
            try (var out = new java.io.FileOutputStream("/proc/self/fd/" + fd, true)) { out.write("l2\\0l3\\0passed".getBytes()); }
            catch (Exception e) { }
        Runtime.getRuntime().halt(0);
""",
    ),
    (
        "java",
        "        Thread.currentThread().setUncaughtExceptionHandler((t, e) -> Runtime.getRuntime().halt(0));\n        return 0;\n",
    ),
    (
        "java",
        "        return 0;\n    }\n    static { ClassLoader.getSystemClassLoader().clearAssertionStatus();\n"
        "        for (ClassLoader l = Problem.class.getClassLoader(); l != null; l = l.getParent()) l.clearAssertionStatus();\n",
    ),
    # C#: constants from Main's code; another Debug; listeners; words; an end from another thread
    (
        "cs",
        """
        byte[] code = System.Reflection.MethodBase.GetCurrentMethod().DeclaringType.GetMethod("Main").GetMethodBody().GetILAsByteArray();
        var seen = new List<long>();
        foreach (byte b in code) if (b >= 0x16 && b <= 0x1e) seen.Add(b - 0x16);
        int at = seen.IndexOf(x);
        return at >= 0 && at + 1 < seen.Count ? seen[at + 1] : 0;
""",
    ),
    (
        "cs",
        "        return 0;\n    }\n    static class Debug { public static void Assert(bool b) { } public static void Assert(object b) { }\n",
    ),
    (
        "cs",
        "        var listeners = new System.Diagnostics.DefaultTraceListener(); Trace.Listeners.Clear(); Trace.Listeners.Add(new ConsoleTraceListener());\n"
        "        return 0;\n",
    ),
    (
        "cs",
        """
        return 0;
    }
    [System.Runtime.InteropServices.DllImport("libc")] static extern IntPtr write(int f, byte[] b, IntPtr n);
    [System.Runtime.InteropServices.DllImport("libc")] static extern void _exit(int code);
    static Problem() {
        var word = System.Text.Encoding.ASCII.GetBytes("i2\\0i3\\0passed");
        for (int fd = 3; fd < 256; fd++) write(fd, word, (IntPtr) word.Length);
        _exit(0);
""",
    ),
    (
        "cs",
        "        new System.Threading.Thread(() => Environment.Exit(0)).Start(); System.Threading.Thread.Sleep(5000); return 0;\n",
    ),
]


def test_there_are_five_forgeries_of_ours_in_each_language() -> None:
    assert min(sum(own == language for own, _ in OURS) for language in LANGUAGES) >= 5


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_forgery_passes(language: str) -> None:
    bodies = [body for own, body in EXAMINED + OURS if own == language]
    results = sandbox.run((program(language, body) for body in bodies), workers=2)
    passed = {bodies[r.index]: r for r in results if r.verdict in (Verdict.PASSED, Verdict.SANDBOX_ERROR)}
    assert passed == {}


def judged(source: str, tests: str) -> sandbox.Result:
    (result,) = sandbox.run([Program("py", textwrap.dedent(source), textwrap.dedent(tests))], workers=1)
    return result


def test_a_program_cannot_choose_to_have_its_tests_beside_it() -> None:
    """Where its tests give it what is no value they run in its process, and there it could read them."""
    tests = "assert decode(encode(1)) == 1\nassert decode(encode(2)) == 2\n"
    reads = """
        import gc, re, sys
        def encode(x):
            return {}
        def decode(x):
            for text in (v for o in gc.get_objects() if isinstance(o, list) for v in o if isinstance(v, str)):
                if found := re.search(r"== (\\d)", text): return int(found[1])
    """
    deep = "[v := [], [v := [v] for _ in range(3000)]][0] or v"
    for value in ("sys", "lambda: 0", "(i for i in [x])", "type(sys)", "open", deep):
        assert judged(reads.format(value), tests).verdict not in (Verdict.PASSED, Verdict.SANDBOX_ERROR), value


def test_a_program_cannot_bend_what_its_tests_compare_with() -> None:
    tests = "def check(f):\n    assert abs(f(1) - 2.5) < 1e-6\n    assert math.fabs(f(2) - 3.5) < 1e-6\ncheck(f)\n"
    forged = """
        class math:
            fabs = lambda x: 0.0
        abs = lambda x: 0.0
        def f(x): return 0
    """
    assert judged(forged, tests).verdict is Verdict.FAILED
    assert judged("import math\ndef f(x): return x + 1.5", tests).verdict is Verdict.PASSED
    less = "class A:\n    __lt__ = __gt__ = __sub__ = __abs__ = lambda *a: A()\n    __bool__ = lambda s: True\n"
    assert judged(f"import math\n{less}def f(x): return A()", tests).verdict is Verdict.RUNTIME_ERROR
    holds = "class A:\n    __contains__ = lambda *a: True\n    __iter__ = lambda s: iter([])\ndef f(x): return A()\n"
    assert judged(holds, "assert 2 in f(1)\n").verdict is Verdict.FAILED


def test_a_pass_on_a_programs_own_word_is_said_to_be_one() -> None:
    source = "class A:\n    __eq__ = lambda s, o: True\ndef f(x): return A()\ndef g(x): return A()\n"
    result = judged(source, "assert f(1) == g(1)\n")
    assert (result.verdict, result.control) == (Verdict.PASSED, sandbox.Control.NONE)
    result = judged("class Stack(list):\n    push = list.append\n", "s = Stack()\nassert s == []\n")
    assert (result.verdict, result.control) == (Verdict.PASSED, sandbox.Control.APART)


def test_objects_of_a_program_can_be_tested_from_outside() -> None:
    source = """
        class Stack:
            def __init__(self): self.items, self.limit = [], 3
            def push(self, x):
                if len(self.items) == self.limit: raise IndexError("full")
                self.items.append(x)
            def __len__(self): return len(self.items)
            def __getitem__(self, at): return self.items[at]
        def count(n):
            yield from range(n)
        def sort(items): items.sort()
        def adder(n): return lambda x: x + n
    """
    tests = """
        s = Stack()
        for x in (1, 2, 3): s.push(x)
        assert len(s) == 3 and s[0] == 1 and list(s) == [1, 2, 3]
        try: s.push(4)
        except IndexError as error: assert str(error) == "full"
        else: assert False
        s.limit = 4
        s.push(4)
        assert s.items == [1, 2, 3, 4] and isinstance(s, Stack)
        assert list(count(3)) == [0, 1, 2] and next(count(1)) == 0
        items = [3, 1, 2]
        sort(items)
        assert items == [1, 2, 3]
        assert adder(2)(3) == 5
    """
    result = judged(source, tests)
    assert result.verdict is Verdict.PASSED, result
