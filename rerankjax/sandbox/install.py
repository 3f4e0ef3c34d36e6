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
    CPP_WORD,
    CSHARP_COMPILER,
    CSHARP_HARNESS,
    CSHARP_TELL,
    GXX,
    INSIDE,
    JAVA,
    JAVA_ARCHIVE,
    JAVA_CLASSES,
    JAVA_OPTIONS,
    JAVAC,
    JAVATUPLES,
    JDK,
    MADE,
    MCS,
    MONO,
    NODE,
    WITH_TOOLCHAIN,
    check,
)

TYPESCRIPT_VERSION = "5.4.5"


def main() -> None:
    """Raises SandboxError that names the package, where one is missing."""
    for build in (_cpp, _java, _csharp, _typescript):
        build()
    for language in WITH_TOOLCHAIN:
        check(language)


def _run(*command: str | os.PathLike[str]) -> None:
    try:
        subprocess.run([os.fspath(part) for part in command], check=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SystemExit(f"install: {error.filename} is missing; install the packages first: make languages") from None


def _cpp() -> None:
    shutil.copytree(INSIDE / "cpp", MADE / "cpp", dirs_exist_ok=True)
    for headers in (CPP_HEADERS, f"{CPP_USUAL}/headers.h"):
        _run(GXX, "-std=c++17", "-x", "c++-header", headers, "-o", f"{headers}.gch")
    for made in (CPP_HARNESS, CPP_WORD):
        _run(GXX, "-std=c++17", "-O2", "-c", made.replace(".o", ".cpp"), "-o", made)


def _java() -> None:
    os.makedirs(MADE / "java", exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        _run(JAVAC, "-cp", JAVATUPLES, "-d", directory, *(INSIDE / "java" / "rerankjax").glob("*.java"))
        _run(f"{JDK}/bin/jar", "--create", "--file", JAVA_CLASSES, "-C", directory, ".")
    # A class archive of what a program loads spares the loading and verifying of hundreds of classes.
    archive = [f"-XX:ArchiveClassesAtExit={JAVA_ARCHIVE}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
    _run(JAVA, *JAVA_OPTIONS, *archive, "-ea", "-cp", f"{JAVA_CLASSES}:{JAVATUPLES}", "rerankjax.Example")


def _csharp() -> None:
    os.makedirs(MADE / "csharp", exist_ok=True)
    for target in (CSHARP_HARNESS, CSHARP_COMPILER, CSHARP_TELL):
        made = pathlib.Path(target)
        kind = "-target:library" if made.suffix == ".dll" else "-target:exe"
        source = INSIDE / "csharp" / f"{made.stem}.cs"
        _run(MONO, MCS, "-nologo", kind, "/d:DEBUG", f"-r:{MCS}", f"-out:{target}", source)


def _typescript() -> None:
    npm = pathlib.Path(NODE).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", "--loglevel=error"]
    _run(NODE, npm, "install", "--prefix", MADE, *options, f"typescript@{TYPESCRIPT_VERSION}")


if __name__ == "__main__":
    main()
