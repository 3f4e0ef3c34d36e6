"""The command `rerankjax train`.

    rerankjax train --config=configs/mini.py --workdir=runs/mini --config.ppo.kl_coef=0.1

To run on several hosts, start one process per host with the same flags: with --distributed if JAX can detect the
cluster (Cloud TPU, Slurm), otherwise with --coordinator=HOST:PORT --num_processes=N --process_id=I. Exit status 75
means that the process received SIGTERM and saved all work: start the command again to resume. On CPUs, set
--cpu_devices to the number of cores for large models: a compiled loop, over layers or tokens, uses one core per device.
"""

import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # the warning advises to install torch

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment's config: a Python file with get_config, as in configs/.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory or bucket address; an existing run resumes.")
REUSE = flags.DEFINE_multi_string("reuse", [], "Another run's directory; identical stages are taken from it.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of this cluster.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if JAX cannot detect the cluster.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Index of this process, from 0, with --coordinator.", lower_bound=0
)

CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "Number of devices that share batches, on a machine without an accelerator.", lower_bound=1
)


def main(argv: Sequence[str]) -> None:
    """Runs the command with the arguments that follow its name, and ends the process with its exit status."""

    def work() -> None:
        from rerankjax.loop.train import train

        train(CONFIG.value, str(WORKDIR.value), REUSE.value or ())

    run_command("rerankjax train", argv, __name__, work, "set fields as in --config.ppo.kl_coef=0.1")


def run_command(
    program: str,
    argv: Sequence[str],
    module: str,
    work: Callable[[], None],
    remedy: str,
    required: Sequence[str] = ("config", "workdir"),
) -> None:
    """Parses the flags of the command's `module`, calls `work` as `run_connected` does, and ends the process.

    remedy: for an argument that is not a flag. required: the flags without which the command does not run.
    """

    def run(rest: list[str]) -> None:
        if len(rest) > 1:
            raise app.UsageError(f"{rest[1]!r} is not a flag: {remedy}")
        logging.set_verbosity(logging.WARNING)  # Orbax reports every file it closes
        run_connected(program, work)

    flags.mark_flags_as_required(required)
    app.run(run, [program, *argv], flags_parser=functools.partial(parse, module=module))


def parse(argv: list[str], module: str) -> list[str]:
    """The arguments that are not flags. Exits with a message of one line if the config does not exist or lacks a field.
    Without arguments, or with --help, prints the docstring and the flags of the command's `module`, and exits."""
    if len(argv) == 1 or {"-h", "-help", "--help"} & set(argv):
        print(f"{sys.modules[module].__doc__}\n{flags.FLAGS.module_help(module)}")
        sys.exit(0)
    try:
        rest = list(flags.FLAGS(argv))
        _ = flags.FLAGS.config.keys()  # raises here if the file cannot be read
    except (AttributeError, KeyError, OSError, TypeError, ValueError, flags.Error) as error:
        lines = str(error.args[0] if error.args else error).strip().splitlines()
        # For an error in a config file, ml_collections gives the whole traceback.
        last = "Traceback" in "".join(lines) or isinstance(error, OSError)
        message = lines[-1] if last else " ".join(" ".join(lines).split())
        if "\\n" in message:  # an unknown field's message is the repr of a text
            message = message.strip("'").replace("\\n", ". ").replace("\\'", "'")
        if isinstance(error, KeyError | AttributeError) and message.strip("'\"").isidentifier():  # a field's name alone
            field = message.strip("'\"")
            message = f"the config file does not set the field {field!r}: add it to the file to set it here"
        sys.exit(f"{argv[0]}: {message.strip()} ({argv[0]} --help lists the flags)")
    return rest


def run_connected(program: str, work: Callable[[], None]) -> None:
    """Joins the other processes that the flags name, and calls `work`. Its errors end the process with one line and an
    exit status."""
    if len({COORDINATOR.value is None, NUM_PROCESSES.value is None, PROCESS_ID.value is None}) > 1:
        raise app.UsageError("--coordinator, --num_processes and --process_id go together: give all three")

    # Importing JAX and transformers takes seconds: help and a wrong flag do not wait for them.
    import jax

    from rerankjax.loop.config import ConfigError
    from rerankjax.run import hosts
    from rerankjax.run.recovery import EXIT_PREEMPTED, Preempted
    from rerankjax.run.rundir import RunDirectoryError
    from rerankjax.sandbox import SandboxError

    if CPU_DEVICES.value:
        hosts.make_cpu_devices(CPU_DEVICES.value)
    several = DISTRIBUTED.value or COORDINATOR.value is not None
    if several:
        hosts.connect(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    try:
        work()
    except Preempted:
        print(f"{program}: stopped by SIGTERM; all work is saved, and the same command resumes", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except (ConfigError, RunDirectoryError, SandboxError, FloatingPointError) as error:
        _end(f"{program}: {error}", several)
    except jax.errors.JaxRuntimeError as error:
        if not several:
            raise
        traceback.print_exc()
        first = str(error).splitlines()[0]
        _end(
            f"{program}: process {jax.process_index()} stops, probably because another process ended: {first}", several
        )


def _end(message: str, several: bool) -> None:
    """Exits with status 1. One of several processes does not wait for the others: they end when its heartbeat stops."""
    if not several:
        sys.exit(message)
    print(message, file=sys.stderr, flush=True)
    os._exit(1)
