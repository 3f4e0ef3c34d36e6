"""The paper's loop with the shape of DeepSeek-Coder 6.7B (arXiv 2401.14196), for `tpu/preflight.py` to compile.

python tpu/preflight.py --config=configs/preflight.py:6.7b --topology=v5e:4x4         # full fine-tuning
python tpu/preflight.py --config=configs/preflight.py:6.7b-lora --topology=v5e:4x4    # rerankers and policies adapt

Prompts and completions of up to 512 tokens; bfloat16 over float32 master weights. The numbers of steps, problems and
samples are of a plausible run: none has been run at this size. What is not named here is as in mini.py.
"""

import dataclasses
import runpy
from pathlib import Path

from ml_collections import ConfigDict

from rerankjax.model.deepseek import DEEPSEEK_CODER

VARIANTS = ("6.7b", "6.7b-lora")


def get_config(arg: str = "6.7b") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"configs/preflight.py:{arg} is unknown: use one of {', '.join(VARIANTS)}")
    config: ConfigDict = runpy.run_path(str(Path(__file__).with_name("mini.py")))["get_config"]("full")
    config.seeds = (0,)
    config.problems.dev = 160
    config.max_prompt_length = config.sampling.max_completion_length = 512
    shape = dataclasses.asdict(DEEPSEEK_CODER["6.7B"]) | {"compute_dtype": "bfloat16", "remat": "full"}
    config.model = ConfigDict(shape, convert_dict=True)
    config.sft.update({"batch_size": 64, "optimizer": {"learning_rate": 2e-5}})
    config.candidates.update({"train": 8, "dev": 8, "test": 8, "batch_size": 16})
    config.reranker.update({"pooling": "last", "lm_coef": 0.0})
    for training in (config.reranker_training, config.retraining):
        training.update({"batch_size": 32, "optimizer": {"learning_rate": 1e-5, "steps": 500}})
    config.mining.update({"pairs": 16000, "grown_pairs": 16000})
    config.ppo.update({"iterations": 100, "batch_size": 64, "learning_rate": 1e-6, "epochs": 1, "kl_coef": 0.05})
    config.early_stopping.every = 10
    config.arms = config.ppo_arms = ("self_training",)
    config.mesh.fsdp = 4
    config.sandbox.workers = 8
    if arg == "6.7b-lora":
        config.lora.rank = 16
        config.ppo.learning_rate = 1e-5
    return config
