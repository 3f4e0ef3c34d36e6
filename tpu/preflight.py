"""Does a run fit a TPU slice, or a host of GPUs? Compiles all of its device steps for chips that are not there.

    python tpu/preflight.py --config=configs/preflight.py:6.7b --topology=v5e:4x4
    python tpu/preflight.py --config=configs/mini.py --topology=h100:8 --config.ppo.batch_size=512

Topologies: v5e, v5p and v6e with their shape in chips; h100 and h200 with how many; cpu:8 simulates devices, to try it.
TPUs need libtpu (`[tpu]`), GPUs JAX's CUDA plugin (`[cuda]`), neither a device. Prints what every step takes of a
chip's memory and the least time it can take; where one does not fit, the flags of the fastest config that does, and its
table. Exit code 0: it fits; 1: it does not, or bad arguments.

What is counted: a step's weights, optimiser state and keys and values; activations, with gradients and whatever else
the program makes and drops; and what the loop holds beside it: other models, and the copy that each host draws with.
Time is the roofline's, chips exchanging their parts at no cost. Where the config's attention is "auto", TPU steps are
compiled with splash as they run, GPU steps with plain XLA, for cuDNN's kernel needs a GPU: there a run takes less. JAX
takes three quarters of a GPU's memory: with XLA_PYTHON_CLIENT_MEM_FRACTION=.95 give --memory_gb=76.
"""

import sys

from absl import app, flags
from ml_collections import config_flags
from rerankjax.loop.experiment import Experiment, resolve

from rerankjax.capacity import preflight, preflight_search, topology
from rerankjax.capacity.roofline import adapter_count, parameter_count

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file of configs/.", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:4x4, v5p:2x2x1, h100:8, cpu:8 ...", required=True)
MEMORY = flags.DEFINE_float("memory_gb", None, "1e9 bytes that a chip has, in place of what it is sold with.", 0.001)
COMPILATIONS = flags.DEFINE_integer("compilations", 60, "At most so many for the table and the suggestion.", 1)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag: fields are set as --config.ppo.kl_coef=0.1")
    try:
        topology.prepare(TOPOLOGY.value)
        target = topology.find(TOPOLOGY.value, MEMORY.value)
        said = run(resolve(CONFIG.value, len(target.devices)), target, COMPILATIONS.value)
    except ValueError as error:
        sys.exit(f"preflight: {error}")
    sys.exit(said and f"preflight: {said}")


def run(e: Experiment, target: topology.Topology, most: int) -> str | None:
    """Prints the tables. What is wrong, and what to do about it; None where all fits."""
    trained = f"of which an adapter trains {adapter_count(e.model, e.lora):,}" if e.lora.rank else "all trained"
    print(f"{parameter_count(e.model):,} parameters, {trained}; {len(target.devices)} x {target.chip.name}\n")
    compiler = preflight.Compiler(target, lambda text: print(text, file=sys.stderr, flush=True))

    def report(e: Experiment) -> bool:
        lines = preflight.lines_of(e, compiler)
        print(f"{preflight_search.described(e, target)}\n\n{preflight.table(lines, target)}\n", flush=True)
        return all(line.fits for line in lines)

    if report(e):
        print(f"It fits ({compiler.count} compilations).")
        return None
    found = preflight_search.suggest(e, compiler, most)
    if found is None:
        return (
            f"it does not fit, and no mesh, remat and microbatches were found that do ({compiler.count} compilations). "
            + preflight_search.closest(e, target)
        )
    report(found)
    return (
        f"it does not fit, but with {' '.join(preflight_search.flags(e, found))} it does, as the second table shows "
        f"({compiler.count} compilations)."
    )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
