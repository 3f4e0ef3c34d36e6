"""The command `rerankjax preflight`.

    rerankjax preflight --config=configs/paper.py:6.7b --topology=v5e:4x4
    rerankjax preflight --config=configs/mini.py --topology=h100:8 --config.ppo.batch_size=512

Checks whether a run fits a TPU slice or a host of GPUs. It compiles all device steps of the run for chips that need
not be present. Topologies: v5e, v5p and v6e with their shape in chips; h100 and h200 with their number; cpu:8 simulates
devices. TPUs need libtpu (`[tpu]`), and GPUs need JAX's CUDA plugin (`[cuda]`); neither needs a device. No weights are
read: a checkpoint's shape is in its config.json.

Prints the memory per chip and the least time of every step. If a step does not fit, prints the flags and the table of
the fastest config that fits. Exit code 0: the run fits; 1: it does not fit, or the arguments are wrong.

Memory includes a step's weights, optimiser state, keys and values, activations, gradients and other temporaries. It
also includes what stays resident: other models, and the copy that each host samples with. Times are the roofline's;
communication between chips is free. If the config's attention is "auto", TPU steps are compiled with splash, as in a
run. GPU steps are compiled with plain XLA, because cuDNN's kernel needs a GPU: a run takes less memory there. JAX takes
three quarters of a GPU's memory; with XLA_PYTHON_CLIENT_MEM_FRACTION=.95, give --memory_gb=76.
"""

import functools
import sys
from collections.abc import Sequence

from absl import app, flags

from rerankjax.loop.command import CONFIG, parse

TOPOLOGY = flags.DEFINE_string("topology", None, "Chips to compile for, e.g. v5e:4x4, v5p:2x2x1, h100:8 or cpu:8.")
MEMORY = flags.DEFINE_float("memory_gb", None, "Memory of a chip in GB (1e9 bytes), instead of the chip's own.", 0.001)
MAX_COMPILATIONS = flags.DEFINE_integer("max_compilations", 60, "Maximum for the table and the search.", 1)
flags.declare_key_flag("config")


def main(argv: Sequence[str]) -> None:
    """Runs the command with the arguments that follow its name, and ends the process with its exit status."""
    flags.mark_flags_as_required(["config", "topology"])
    app.run(_preflight, ["rerankjax preflight", *argv], flags_parser=functools.partial(parse, module=__name__))


def _preflight(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is not a flag: set fields as in --config.ppo.kl_coef=0.1")

    # Importing JAX takes seconds: help and a wrong flag do not wait for it.
    from rerankjax.capacity import topology
    from rerankjax.capacity.preflight_report import run
    from rerankjax.loop.resolve import resolve

    try:
        topology.prepare(str(TOPOLOGY.value))
        target = topology.find(str(TOPOLOGY.value), MEMORY.value)
        wrong = run(resolve(CONFIG.value, len(target.devices)), target, MAX_COMPILATIONS.value)
    except ValueError as error:
        sys.exit(f"rerankjax preflight: {error}")
    sys.exit(wrong and f"rerankjax preflight: {wrong}")
