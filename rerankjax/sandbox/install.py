"""Makes what starts the toolchains fast: precompiled headers, harnesses, a class archive; fetches TypeScript.

    python -m rerankjax.sandbox.install      # after the packages that setup.sh installs

Everything goes below `sys.prefix`/share/rerankjax.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile

from rerankjax.sandbox.toolchains import (
    CPP_HARNESS,
    CPP_HEADERS,
    CPP_USUAL,
    CSHARP_COMPILER,
    CSHARP_HARNESS,
    GXX,
    INSIDE,
    JAVA,
    JAVA_ARCHIVE,
    JAVA_CLASSES,
    JAVA_OPTIONS,
    JAVAC,
    JAVATUPLES,
    JDK,
    LANGUAGES,
    MADE,
    MCS,
    MONO,
    NODE,
    check,
)

TYPESCRIPT_VERSION = "5.4.5"


def main() -> None:
    """Raises SandboxError that names the package, where one is missing."""
    for build in (_cpp, _java, _csharp, _typescript):
        build()
    for language in LANGUAGES:
        check(language)


def _run(*command: str | os.PathLike[str]) -> None:
    try:
        subprocess.run([os.fspath(part) for part in command], check=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SystemExit(f"install: {error.filename} is not here; the packages come first: make languages") from None


def _cpp() -> None:
    shutil.copytree(INSIDE / "cpp", MADE / "cpp", dirs_exist_ok=True)
    for headers in (CPP_HEADERS, f"{CPP_USUAL}/headers.h"):
        _run(GXX, "-std=c++17", "-x", "c++-header", headers, "-o", f"{headers}.gch")
    _run(GXX, "-c", INSIDE / "cpp" / "harness.cpp", "-o", CPP_HARNESS)


def _java() -> None:
    os.makedirs(MADE / "java", exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        _run(JAVAC, "-d", directory, *(INSIDE / "java").glob("*.java"))
        _run(f"{JDK}/bin/jar", "--create", "--file", JAVA_CLASSES, "-C", directory, ".")
        # A class archive of what a program loads spares the loading and verifying of hundreds of classes.
        example = pathlib.Path(directory) / "Problem.java"
        shutil.copy(INSIDE / "java" / "Problem.txt", example)
        _run(JAVAC, "-cp", JAVATUPLES, "-d", f"{directory}/classes", example)
        archive = [f"-XX:ArchiveClassesAtExit={JAVA_ARCHIVE}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        classpath = f"{JAVA_CLASSES}:{JAVATUPLES}"
        _run(
            JAVA,
            *JAVA_OPTIONS,
            *archive,
            "-ea",
            "-cp",
            classpath,
            "Harness",
            f"{directory}/classes",
            "Problem",
            "output",
        )


def _csharp() -> None:
    os.makedirs(MADE / "csharp", exist_ok=True)
    for target in (CSHARP_HARNESS, CSHARP_COMPILER):
        source = INSIDE / "csharp" / f"{pathlib.Path(target).stem}.cs"
        _run(MONO, MCS, "-nologo", "/d:DEBUG", f"-r:{MCS}", f"-out:{target}", source)


def _typescript() -> None:
    npm = pathlib.Path(NODE).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", "--loglevel=error"]
    _run(NODE, npm, "install", "--prefix", MADE, *options, f"typescript@{TYPESCRIPT_VERSION}")


if __name__ == "__main__":
    main()
