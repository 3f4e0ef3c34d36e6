"""How much memory and time it takes to load a checkpoint.

    python benchmarks/loading.py [--megabytes 2000] [--dtype bfloat16]

Writes a random Llama in four files to a temporary folder and loads it in a new process. Prints the time, and the peak
of that process's resident memory above its memory before loading, relative to the checkpoint's size. Takes half a
minute at 2 GB.
"""

import argparse
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.model.weights import load, save

LAYERS = 16
SHAPE = ModelConfig(32_000, 2048, 5504, LAYERS, 16, 16, 128, 2048, tie_word_embeddings=False)  # 0.94 B parameters


def write(folder: pathlib.Path, megabytes: int, dtype: str) -> int:
    """Writes a checkpoint of about that size; returns its size in bytes. Its values repeat one random block."""
    whole = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda k: init_decoder(SHAPE, k), jax.random.key(0)))
    )
    scale = (megabytes * 1e6 / jnp.dtype(dtype).itemsize / whole) ** 0.5
    config = dataclasses.replace(
        SHAPE,
        vocab_size=int(SHAPE.vocab_size * scale),
        hidden_size=int(SHAPE.num_attention_heads * round(SHAPE.head_dim * scale / 2) * 2),
        intermediate_size=int(SHAPE.intermediate_size * scale),
        head_dim=round(SHAPE.head_dim * scale / 2) * 2,
    )
    block = np.random.default_rng(0).normal(size=10**6).astype(jnp.dtype(dtype))
    shapes = jax.eval_shape(lambda k: init_decoder(config, k), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.resize(block, leaf.shape), shapes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    save(folder, config, params, max_file_bytes=size // 4 + size // 16)
    return size


def memory_bytes(field: str) -> int:
    """VmRSS, the resident memory, or VmHWM, its peak: unlike getrusage's peak, of this process, not of its parent."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def measure(folder: str) -> None:
    load(pathlib.Path(folder, "tiny"))  # so that imports and compilation are not counted
    before, start = memory_bytes("VmRSS"), time.perf_counter()
    _, params = load(pathlib.Path(folder, "large"))
    jax.block_until_ready(params)
    print(memory_bytes("VmHWM") - before, time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure)
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder, "tiny"), 1, args.dtype)
        size = write(pathlib.Path(folder, "large"), args.megabytes, args.dtype)
        command = [sys.executable, __file__, "--measure", folder]
        peak, seconds = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    print(
        f"{size / 1e9:.2f} GB of {args.dtype}: {seconds:.1f} s, peak memory {peak / size:.2f} of the checkpoint's size"
    )
    return None


if __name__ == "__main__":
    main()
