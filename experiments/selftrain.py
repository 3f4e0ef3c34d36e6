"""Run the paper's loop: python experiments/selftrain.py --config=configs/mini.py --workdir=runs/mini

Several processes make one run, each started with the same flags: with --distributed where JAX knows the cluster (Cloud
TPU, Slurm), else with --coordinator=HOST:PORT --processes=N --process=I. Exit status 75 says that SIGTERM came and all
is saved: start it again, and it goes on.
"""

import os
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises to install torch

from rerankjax.loop.experiment import ConfigError
from rerankjax.loop.selftrain import selftrain
from rerankjax.run import hosts
from rerankjax.run.recovery import EXIT_PREEMPTED, Preempted
from rerankjax.run.rundir import RunDirectoryError
from rerankjax.sandbox import SandboxError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file of configs/.", lock_config=True)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of this cluster.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the cluster does not tell.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many there are, with --coordinator.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0, with --coordinator.", lower_bound=0)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory: made, or gone on with.", required=True)
REUSE = flags.DEFINE_string("reuse", None, "Another run's directory, whose stages are taken where they would be alike.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag: fields are set as --config.ppo.kl_coef=0.1")
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it closes
    if len({COORDINATOR.value is None, PROCESSES.value is None, PROCESS.value is None}) > 1:
        raise app.UsageError("--coordinator, --processes and --process go together: give all three")
    several = DISTRIBUTED.value or COORDINATOR.value is not None
    if several:
        hosts.connect(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    try:
        selftrain(CONFIG.value, WORKDIR.value, REUSE.value)
    except Preempted:
        print("selftrain: SIGTERM came; all is saved, start it again", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except (ConfigError, RunDirectoryError, SandboxError, FloatingPointError) as error:
        end(f"selftrain: {error}", several)
    except jax.errors.JaxRuntimeError as error:
        if not several:
            raise
        traceback.print_exc()
        first = str(error).splitlines()[0]
        end(f"selftrain: process {jax.process_index()} stops, as another has most likely ended: {first}", several)


def end(message: str, several: bool) -> None:
    """Exits with status 1. One of several processes does not wait for the others: they end when it is not heard of."""
    if not several:
        sys.exit(message)
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
