"""What the tests share: eight CPU devices, and a model small enough to check by hand."""

import atexit
import os
import random
import shutil
import tempfile
import time

import jax
import pytest
from jaxtyping import install_import_hook

# Before the first use of a device. XLA runs each device's part of a program on a thread of a pool of as many as cores,
# and a part that waits for another at a collective keeps its thread: two programs in flight can hold all of them.
os.environ.setdefault("NPROC", "16")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_cpu_enable_async_dispatch", False)
# No silent change of a type or of a rank.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# What one test has compiled another need not compile again; nothing is kept from one run of the suite to the next.
if "RERANKJAX_TESTS_CACHE" not in os.environ:  # pytest-xdist's workers share that of the process that starts them
    os.environ["RERANKJAX_TESTS_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["RERANKJAX_TESTS_CACHE"], ignore_errors=True)
for option, value in {
    "jax_compilation_cache_dir": os.environ["RERANKJAX_TESTS_CACHE"],
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)  # for the programs that tests start
# Programs here are tiny and run seldom: what LLVM would gain in them takes many times longer to find, and XLA's older
# emitters compile in half the time (jaxlib 0.12 has none). Tests that start programs may give them these flags.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 12):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["RERANKJAX_TESTS_XLA_FLAGS"] = QUICK
FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{FLAGS} {QUICK}"
jax.devices()
os.environ["XLA_FLAGS"] = FLAGS

# Calls in the packages of array code check the shapes and types of their annotations; before their first import.
ARRAY_CODE = [f"rerankjax.{name}" for name in ("model", "candidates", "reranker", "policy")]
install_import_hook(ARRAY_CODE, "beartype.beartype")

from rerankjax.model.config import ModelConfig  # noqa: E402


@pytest.fixture
def tiny() -> ModelConfig:
    return ModelConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )


@pytest.fixture
def moments() -> random.Random:
    """When to kill. A failing test prints the seed that repeats it."""
    seed = int(os.environ.get("RERANKJAX_TESTS_SEED", time.time_ns()))
    print(f"repeat with RERANKJAX_TESTS_SEED={seed}")
    return random.Random(seed)
