"""A reranker from your base model and your labelled data, without the loop.

rerankjax train-reranker --config=configs/reranker.py --workdir=runs/reranker \
    --config.base=FOLDER_OR_HUB_ID_OR_GGUF --config.data=samples.jsonl
rerankjax train-reranker --config=configs/reranker.py:full ...     # all parameters, not an adapter
rerankjax train-reranker --config=configs/reranker.py:trial ...    # ten steps in float32: does it run?

Data is one or more of .jsonl[.gz] and .parquet files, directories of MultiPL-E's results, and datasets of the hub, e.g.
--config.data="('a.jsonl', 'owner/name')". The fields of a row determine its kind:

    {"prompt": "...", "chosen": "...", "rejected": "..."}                          texts, or conversations
    {"prompt": "...", "candidates": ["...", ...], "passed": [true, false, ...]}    executed samples

The reranker is written to WORKDIR/export with its card, README.md, and results.json. A tenth of the problems decides
when to stop; another tenth gives the figures. Sizes are for a model of about 1B parameters and one accelerator; all of
them are config fields (documented in rerankjax/standalone/config.py).
"""

from ml_collections import ConfigDict

VARIANTS = ("lora", "full", "trial")


def get_config(arg: str = "lora") -> ConfigDict:
    parts = arg.split(",")
    if not set(parts) <= set(VARIANTS):
        raise ValueError(
            f"configs/reranker.py:{arg} is unknown: use some of {', '.join(VARIANTS)}, with commas between them"
        )
    config = ConfigDict(
        {
            "base": "",
            "revision": "",
            "dtype": "bfloat16",
            "compute_dtype": "bfloat16",
            "remat": "full",
            "attention": "auto",
            "data": (),
            "dev": (),
            "test": (),
            "dev_fraction": 0.1,
            "test_fraction": 0.1,
            "seed": 0,
            "format": "auto",
            "max_length": 1024,
            "pairs_per_problem": 16,
            "pairs_together": 8,
            "pooling": "last",
            "lm_coef": 0.0,
            "batch_size": 32,
            "optimizer": {"learning_rate": 1e-4, "steps": 300, "warmup_steps": 10, "microbatches": 8},
            "early_stopping": {"every": 25, "patience": 6},
            "lora": {
                "rank": 16,
                "alpha": 32.0,
                "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            },
            "mesh": {"data": 0, "fsdp": 1, "sequence": 1, "tensor": 1},
            "checkpoints": {"steps": 100, "iterations": 5, "keep": 2},
        },
        convert_dict=True,
    )
    if "full" in parts:
        # In bfloat16 small updates would be lost, so parameters are kept in float32 and products are in bfloat16.
        config.dtype = "float32"
        config.lora.rank = 0
        config.optimizer.learning_rate = 1e-5
    if "trial" in parts:
        config.update({"dtype": "float32", "compute_dtype": "", "remat": "none", "max_length": 256, "batch_size": 4})
        config.optimizer.update({"steps": 10, "warmup_steps": 1, "microbatches": 1})
        config.early_stopping.every = 5
    return config
