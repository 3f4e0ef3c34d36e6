"""Hugging Face's model folders: finding one, and its config.json as a `ModelConfig`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from rerankjax.model.config import MODEL_TYPES, ModelConfig, RopeScaling

FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = ("*token*.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template*")

# Fields that change what a model computes or trains: the one value supported, and what to do about another.
SUPPORTED: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "the feed-forward layers are SwiGLU"),
    "mlp_bias": (False, "the feed-forward layers have no biases"),
    "attention_dropout": (0.0, "no dropout is applied; write 0.0 to train without it"),
    "quantization_config": (None, "save the model dequantized, in float32, float16 or bfloat16"),
}
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def find_folder(path_or_id: Path | str, revision: str | None = None) -> Path:
    """A checkpoint's folder or GGUF file: `path_or_id` itself if it is a path, otherwise a download of that hub id.

    The network is not used for a folder, a file, a `Path`, or text that starts or ends as a path does.

    Raises:
        FileNotFoundError: no such folder or file.
    """
    path = Path(path_or_id)
    if path.exists():
        return path
    text = str(path_or_id)
    if (
        isinstance(path_or_id, Path)
        or text.startswith(("/", ".", "~"))
        or text.endswith(".gguf")
        or text.count("/") > 1
    ):
        raise FileNotFoundError(f"{path_or_id} is not a folder or .gguf file: give one, or a hub id such as owner/name")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path_or_id, revision=revision, allow_patterns=[*FILES, *TOKENIZER_FILES]))


def read_config(folder: Path) -> tuple[ModelConfig, PretrainedConfig]:
    """config.json as ours and as transformers reads it, which fills in what old files leave out.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: a field that changes what the model computes has a value that is not supported.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that save_pretrained wrote")
    model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"{path}: model_type = {model_type!r} is not supported: use one of {', '.join(MODEL_TYPES)}")
    hf = AutoConfig.from_pretrained(folder, local_files_only=True)
    for name, (supported, remedy) in SUPPORTED.items():
        value = getattr(hf, name, supported)
        if value != supported:
            raise ValueError(f"{path}: {name} = {value!r} is not supported, only {supported!r} is: {remedy}")
    if any(kind != "full_attention" for kind in getattr(hf, "layer_types", None) or ()):
        raise ValueError(
            f"{path}: use_sliding_window = True, or layer_types with {sorted(set(hf.layer_types))}, is not supported: "
            "every layer attends to the whole context; write false if your context is not longer than sliding_window"
        )
    rope = hf.rope_parameters
    try:
        config = ModelConfig(
            vocab_size=hf.vocab_size,
            hidden_size=hf.hidden_size,
            intermediate_size=hf.intermediate_size,
            num_hidden_layers=hf.num_hidden_layers,
            num_attention_heads=hf.num_attention_heads,
            num_key_value_heads=hf.num_key_value_heads,
            head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
            max_position_embeddings=hf.max_position_embeddings,
            rope_theta=float(rope["rope_theta"]),
            rms_norm_eps=hf.rms_norm_eps,
            tie_word_embeddings=bool(hf.tie_word_embeddings),
            model_type=model_type,
            attention_bias=model_type != "qwen2" and bool(hf.attention_bias),
            rope_scaling=_rope_scaling(rope),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config, hf


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling:
    kind = rope["rope_type"]
    scaling = RopeScaling(kind)  # refuses an unsupported type before its fields are read
    for name in sorted(rope.keys() - {"rope_type", "type", "rope_theta", *ROPE_FIELDS[kind]}):
        raise ValueError(f'rope_parameters.{name} = {rope[name]!r} is not supported with rope_type = "{kind}"')
    for name in ROPE_FIELDS[kind]:
        if name not in rope:
            raise ValueError(f'rope_parameters.{name} is missing: rope_type = "{kind}" needs it')
    numbers = {name: type(getattr(scaling, name))(rope[name]) for name in ROPE_FIELDS[kind]}
    return RopeScaling(kind, **numbers)


def write_config(folder: Path, config: ModelConfig, head: str, **fields: Any) -> None:
    """Writes config.json of class `head` (for example "ForCausalLM"), with `fields` unchanged.

    RoPE's settings are written twice, because transformers 4 does not know `rope_parameters`, and would take its own.
    """
    scaling = config.rope_scaling
    rope = {name: getattr(scaling, name) for name in ("rope_type", *ROPE_FIELDS[scaling.rope_type])}
    own = {name: getattr(config, name) for name in SAVED}
    if config.model_type != "qwen2":
        own["attention_bias"] = config.attention_bias
    AutoConfig.for_model(
        config.model_type,
        **own,
        rope_parameters=rope | {"rope_theta": config.rope_theta},
        architectures=[config.model_type.capitalize() + head],
        **fields,
    ).save_pretrained(folder)
    path = folder / "config.json"
    older = {"rope_theta": config.rope_theta} | ({} if scaling.rope_type == "default" else {"rope_scaling": rope})
    written = json.loads(path.read_text(encoding="utf-8")) | older
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


SAVED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)
