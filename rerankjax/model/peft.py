"""Adapters in the format of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors in a folder."""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors.numpy import load_file, save_file

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.lora import TARGETS, LoraConfig, adapter_shapes
from rerankjax.model.weights import tensor_names

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SCORE = "base_model.model.score.weight"
HALVES = {"lora_a": "lora_A", "lora_b": "lora_B"}

READ = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "modules_to_save", "init_lora_weights"}
# Fields about an adapter's origin or its training, or that repeat what the tensors show.
IGNORED = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}


def save_adapter(
    path: Path,
    config: ModelConfig,
    lora: LoraConfig,
    adapter: Params,
    head: Float[Array, " D"] | None = None,
    base_model_name_or_path: str | None = None,
) -> None:
    """Writes an adapter, for a reranker with its head, into the new or empty folder `path`.

    Raises:
        FileExistsError: `path` is not empty.
    """
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty: give a new folder")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        "base_model_name_or_path": base_model_name_or_path,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets),
        "modules_to_save": None if head is None else ["score"],
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (path / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    tensors = {} if head is None else {SCORE: np.asarray(head)[None]}
    for target in lora.targets:
        for half in HALVES:
            layers = np.asarray(adapter["layers"][target][half])
            for name, layer in zip(_names(config, target, half), layers, strict=True):
                tensors[name] = np.ascontiguousarray(layer.T)
    save_file(tensors, path / TENSORS, metadata={"format": "pt"})


def load_adapter(path: Path, config: ModelConfig) -> tuple[LoraConfig, Params, Float[Array, " D"] | None]:
    """A folder's LoRA adapter for a base of `config`, float32 on the first device, and its reward head if it has one.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: adapter_config.json asks for what is not supported; a tensor is missing, unexpected or of a wrong
            shape.
    """
    for name in (CONFIG, TENSORS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name} does not exist: give a folder that PEFT's save_pretrained wrote")
    fields = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    _check_fields(path / CONFIG, fields)
    tensors = load_file(path / TENSORS)
    # A list names modules; for a pattern, the tensors show which modules it matched.
    listed = fields["target_modules"] if isinstance(fields["target_modules"], list) else []
    tensor_targets = [target for target in TARGETS if any(f".{target}.lora_" in name for name in tensors)]
    for target in listed:
        if target not in TARGETS:
            raise ValueError(f"{path / CONFIG}: target_modules has {target!r}: only {', '.join(TARGETS)} are supported")
    rank = fields["r"]
    # rsLoRA scales by alpha / sqrt(rank) (arXiv 2312.03732).
    alpha = fields["lora_alpha"] * (math.sqrt(rank) if fields.get("use_rslora") else 1.0)
    try:
        lora = LoraConfig(rank, float(alpha), tuple(t for t in TARGETS if t in {*listed, *tensor_targets}))
    except ValueError as error:
        raise ValueError(f"{path / CONFIG}: {error}") from error

    shapes = adapter_shapes(config, lora)
    expected = {
        name: pair[half].shape[:0:-1]
        for target, pair in shapes["layers"].items()
        for half in HALVES
        for name in _names(config, target, half)
    }
    if SCORE in tensors or fields.get("task_type") == "SEQ_CLS":
        expected[SCORE] = (1, config.hidden_size)
    for fault, names in (("lacks", expected.keys() - tensors.keys()), ("unexpected", tensors.keys() - expected.keys())):
        if names:
            raise ValueError(
                f"{path / TENSORS} {fault} {sorted(names)[0]} (one of {len(names)}): give the adapter of this model"
            )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{path / TENSORS}: {name} has shape {tensors[name].shape}, but the model and r = {rank} need "
                f"{shape}: give the adapter of this model"
            )

    def stack(target: str, half: str) -> Array:
        return jnp.asarray(np.stack([tensors[n].T for n in _names(config, target, half)]), jnp.float32)

    layers = {target: {half: stack(target, half) for half in HALVES} for target in lora.targets}
    head = jnp.asarray(tensors[SCORE][0], jnp.float32) if SCORE in expected else None
    return lora, {"layers": layers}, head


def _names(config: ModelConfig, target: str, half: str) -> list[str]:
    """PEFT's names of one half of an adapter's pair, layer by layer."""
    names = tensor_names(("layers", target, "kernel"), config.num_hidden_layers)
    return [f"base_model.model.{name.removesuffix('weight')}{HALVES[half]}.weight" for name in names]


def _check_fields(file: Path, fields: dict[str, Any]) -> None:
    """Refuses fields that ask for unsupported computation: every field that is not known to change nothing."""

    def refuse(name: str, remedy: str) -> None:
        raise ValueError(f"{file}: {name} = {fields[name]!r} is not supported: {remedy}")

    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if name not in fields:
            raise ValueError(f"{file}: {name} is missing: give a folder that PEFT's save_pretrained wrote")
    if fields["peft_type"] != "LORA":
        refuse("peft_type", 'only "LORA" is')
    if fields.get("init_lora_weights", True) not in (True, False, "gaussian"):
        refuse("init_lora_weights", "it changes the base too; convert the adapter to LoRA as PEFT's guide says")
    if set(fields.get("modules_to_save") or ()) - {"score", "classifier"}:
        refuse("modules_to_save", "the only whole module that is read is the reward head, score")
    for name in sorted(fields.keys() - READ - IGNORED):
        if fields[name] and not (name == "bias" and fields[name] == "none"):
            refuse(name, "merge the adapter with PEFT's merge_and_unload and load the merged model")
