"""Weights in Hugging Face's format: loaded tensor by tensor onto the devices, and saved for `transformers`.

A GGUF file is loaded too, under Hugging Face's names.

Here a layer's parameter has a leading axis over layers, then [in, out]; in the files each layer has its own tensor
[out, in]. A device's part is assembled in host memory from slices of these tensors, one parameter at a time.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from transformers import PreTrainedTokenizerBase

from rerankjax.gguf_file import read_gguf
from rerankjax.model import gguf
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, init_decoder
from rerankjax.model.pretrained import find_folder, read_config, write_config
from rerankjax.model.tensors import StoredTensor, find_tensors, same, write_tensors

ParamPath = tuple[str, ...]  # in the tree: ("layers", "q_proj", "kernel")
Placement = Sharding | Callable[[ParamPath, tuple[int, ...]], Sharding]
Tensors = Mapping[str, StoredTensor]  # by Hugging Face's names

FLOATS = ("F32", "F16", "BF16")
MLP = ("gate_proj", "up_proj", "down_proj")
LM_HEAD = "lm_head.weight"
# A reward head's name by pooling. transformers' classes score the last token and know only that head: they report the
# other one as missing and unexpected. Under the same name, they would silently give other scores.
HEADS = {"last": "score", "mean": "mean_score"}
SCORES = tuple(f"{head}.weight" for head in HEADS.values())
MAX_FILE_BYTES = 5 * 10**9


def load(
    path_or_id: Path | str, *, sharding: Placement | None = None, dtype: Any = None, revision: str | None = None
) -> tuple[ModelConfig, Params]:
    """A `*ForCausalLM` checkpoint from a folder, a hub id or a GGUF file.

    sharding: of every parameter, or a function of a parameter's path and shape that gives it; without it, all are on
    the first device. dtype: of the parameters; without it, as saved, and float32 from a GGUF file.
    Host memory peaks at one parameter of all layers, or at one device's part of it.

    Raises:
        FileNotFoundError: no such folder or file, or a file of the folder is missing.
        ValueError: config.json, or a GGUF file's metadata, asks for what is not supported; a tensor is missing,
            unexpected or of a wrong shape; a GGUF file is cut off.
    """
    path = find_folder(path_or_id, revision)
    config = read_shape(path)
    tensors: Tensors = gguf.find_tensors(read_gguf(path), config) if path.is_file() else find_tensors(path)
    return config, _load(path, config, _decoder_shapes(config), tensors, sharding, dtype)


def read_shape(path: Path) -> ModelConfig:
    """The shape of the checkpoint at `path`, a folder or a GGUF file. Errors as `load`."""
    return gguf.read_config(read_gguf(path)) if path.is_file() else read_config(path)[0]


def load_reranker(
    path_or_id: Path | str, *, sharding: Placement | None = None, dtype: Any = None, revision: str | None = None
) -> tuple[ModelConfig, Params, str]:
    """A `*ForSequenceClassification` checkpoint with one label: {"decoder": the trunk, "score": the head}; its pooling.

    With `score.weight`, as transformers' models have it, the pooling is "last"; with `mean_score.weight`, our own,
    "mean". The format has no language-model head, so one that is not tied to the embeddings is loaded only if the
    checkpoint holds it anyway. Arguments as for `load`; the head's path is ("score", "kernel") or ("mean_score",
    "kernel"), and its shape [D, 1].

    Raises:
        FileNotFoundError, ValueError: as `load`; ValueError also for no head, both heads, more than one label, or a
            GGUF file, which has no head.
    """
    folder = find_reranker(path_or_id, revision)
    config, hf = read_config(folder)
    tensors = find_tensors(folder)
    poolings = [pooling for pooling, head in HEADS.items() if f"{head}.weight" in tensors] or ["last"]
    if len(poolings) > 1:
        raise ValueError(f"{folder} has both {' and '.join(SCORES)}: remove the one that was not trained")
    head = HEADS[poolings[0]]
    if f"{head}.weight" in tensors and hf.num_labels != 1:
        raise ValueError(
            f"{folder / 'config.json'}: num_labels = {hf.num_labels} is not supported: a reranker has one score; give "
            "a reward model with num_labels = 1"
        )
    decoder = {k: v for k, v in _decoder_shapes(config).items() if k != "lm_head" or LM_HEAD in tensors}
    score = {"kernel": jax.ShapeDtypeStruct((config.hidden_size, 1), jnp.float32)}
    params = _load(folder, config, {"decoder": decoder, head: score}, tensors, sharding, dtype)
    return config, {"decoder": params["decoder"], "score": params[head]["kernel"][:, 0]}, poolings[0]


def find_reranker(path_or_id: Path | str, revision: str | None = None) -> Path:
    """`find_folder` of a reranker. Raises ValueError for a GGUF file."""
    folder = find_folder(path_or_id, revision)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file, but a reranker needs a score head, and GGUF files of these models have none: give a "
            "reward model's folder, or load the language model with load and add a head with init_reranker"
        )
    return folder


def save(
    path: Path,
    config: ModelConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a `*ForCausalLM` into the new or empty folder `path`.

    The tokenizer is saved with it, and gives config.json its special tokens. Host memory peaks at one file. Every
    parameter must be addressable from this process.

    Raises:
        FileExistsError: `path` is not empty.
    """
    _save(path, config, params, "ForCausalLM", tokenizer, max_file_bytes)


def save_reranker(
    path: Path,
    config: ModelConfig,
    params: Params,
    *,
    pooling: str,
    pad_token_id: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a reranker as `*ForSequenceClassification` with one label, without its language-model head; see `save`.

    With the pooling "last", `transformers` loads it and gives the same scores: it scores the last token that is not
    `pad_token_id`, so that no text may hold this token. It does not load a "mean" head, and reports that.

    Raises:
        FileExistsError: `path` is not empty.
        ValueError: an unknown pooling or token, or a padding token that also ends texts, with which `transformers`
            gives other scores.
    """
    if pooling not in HEADS:
        raise ValueError(f'pooling = "{pooling}" is unknown: use one of {", ".join(HEADS)}')
    if not 0 <= pad_token_id < config.vocab_size:
        raise ValueError(f"pad_token_id = {pad_token_id} is not in the vocabulary: use 0 to {config.vocab_size - 1}")
    if pooling == "last" and tokenizer is not None and pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"pad_token_id = {pad_token_id} is also the tokenizer's end of text, which would count as padding: use "
            "another token for padding"
        )
    decoder = {name: value for name, value in params["decoder"].items() if name != "lm_head"}
    reranker = {"decoder": decoder, HEADS[pooling]: {"kernel": params["score"][:, None]}}
    head = {"num_labels": 1, "pad_token_id": pad_token_id}
    _save(path, config, reranker, "ForSequenceClassification", tokenizer, max_file_bytes, **head)


def _decoder_shapes(config: ModelConfig) -> Params:
    return jax.eval_shape(functools.partial(init_decoder, config), jax.random.key(0))


def _leaves(tree: Params) -> list[tuple[ParamPath, Any]]:
    return [(tuple(key.key for key in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def tensor_names(path: ParamPath, layers: int) -> list[str]:
    """The tensors that a parameter is made of: one for each layer, or one."""
    module, end = path[-2], "bias" if path[-1] == "bias" else "weight"
    if not _stacked(path):
        return [f"{module}.{end}" if module in ("lm_head", *HEADS.values()) else f"model.{module}.{end}"]
    if not module.endswith("layernorm"):
        module = f"{'mlp' if module in MLP else 'self_attn'}.{module}"
    return [f"model.layers.{i}.{module}.{end}" for i in range(layers)]


def _stacked(path: ParamPath) -> bool:
    return "layers" in path


def _transposed(path: ParamPath) -> bool:
    return path[-1] == "kernel"


def _load(
    source: Path,
    config: ModelConfig,
    shapes: Params,
    tensors: Tensors,
    sharding: Placement | None,
    dtype: Any,
) -> Params:
    leaves = _leaves(shapes)
    _check_tensors(source, config, leaves, tensors)
    arrays = {}
    # The largest first: assembling one then takes less memory than the parameters still to come.
    for path, leaf in sorted(leaves, key=lambda item: -item[1].size):
        parameter_tensors = [tensors[name] for name in tensor_names(path, config.num_hidden_layers)]
        place = sharding(path, leaf.shape) if callable(sharding) else sharding
        arrays[path] = _put(path, leaf.shape, parameter_tensors, place or SingleDeviceSharding(jax.devices()[0]), dtype)
    return jax.tree.unflatten(jax.tree.structure(shapes), [arrays[path] for path, _ in leaves])


def _put(
    path: ParamPath, shape: tuple[int, ...], tensors: Sequence[StoredTensor], sharding: Sharding, dtype: Any
) -> jax.Array:
    """A parameter on its devices, from its tensors. Devices that hold the same part share one read."""
    devices_of: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        part = tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True))
        devices_of.setdefault(part, []).append(device)
    arrays = []
    for part, devices in devices_of.items():
        index = tuple(slice(*bounds) for bounds in part)
        block = np.empty([stop - start for start, stop in part], dtype or _dtype(tensors[0]))
        layers = zip(block, tensors[index[0]], strict=True) if _stacked(path) else [(block, tensors[0])]
        inner = index[1:] if _stacked(path) else index
        for layer, tensor in layers:
            target = layer.T if _transposed(path) else layer
            for rows, values in tensor.read_rows(inner[::-1] if _transposed(path) else inner):
                target[rows] = values
        arrays += [jax.device_put(block, device) for device in devices]
        jax.block_until_ready(arrays)  # otherwise the next block is read while this one is still in host memory
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _dtype(tensor: StoredTensor) -> np.dtype:
    return jnp.dtype({"F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}[tensor.dtype])


def _check_tensors(source: Path, config: ModelConfig, leaves: list[tuple[ParamPath, Any]], tensors: Tensors) -> None:
    """Refuses a checkpoint that is not exactly what its config asks for, before any weight is read."""
    asks, stored_name = ("its metadata", gguf.stored_name) if source.is_file() else ("config.json", str)
    expected: dict[str, tuple[int, ...]] = {}
    for path, leaf in leaves:
        shape = leaf.shape[1:] if _stacked(path) else leaf.shape
        names = tensor_names(path, config.num_hidden_layers)
        expected |= dict.fromkeys(names, shape[::-1] if _transposed(path) else shape)

    missing = sorted(expected.keys() - tensors.keys(), key=lambda name: (name not in (*SCORES, LM_HEAD), name))
    if missing:
        remedy = {
            SCORES[0]: "this is not a reward model; load it with load and add a head with init_reranker",
            LM_HEAD: "this is not a *ForCausalLM, or its config.json should have tie_word_embeddings = true",
        }.get(missing[0], "complete the checkpoint")
        raise ValueError(
            f"{source} lacks {_listed(map(stored_name, missing))}, and missing tensors are not initialised: {remedy}"
        )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{tensor.file}: {tensor.name} has shape {tensor.shape}, but {asks} gives {shape}: correct one of them"
            )
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.file}: {name} is {tensor.dtype}, not one of {', '.join(FLOATS)}: convert it")

    # Old checkpoints hold RoPE's frequencies, which follow from config.json.
    surplus = sorted(name for name in tensors.keys() - expected.keys() if not name.endswith("rotary_emb.inv_freq"))
    if LM_HEAD in surplus and config.tie_word_embeddings:
        if not same(tensors[LM_HEAD], tensors["model.embed_tokens.weight"]):
            raise ValueError(
                f"{tensors[LM_HEAD].file}: {LM_HEAD} differs from the embedding, but config.json has "
                "tie_word_embeddings = true: write false there, or remove the tensor"
            )
        surplus.remove(LM_HEAD)
    if surplus:
        remedy = (
            "load a reward model with load_reranker" if set(SCORES) & set(surplus) else f"correct {asks} or remove them"
        )
        names = [tensors[name].name for name in surplus]
        raise ValueError(f"{tensors[surplus[0]].file}: unexpected {_listed(names)}: {remedy}")


def _listed(all_names: Iterable[str]) -> str:
    names = list(all_names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _save(
    path: Path,
    config: ModelConfig,
    params: Params,
    head: str,
    tokenizer: PreTrainedTokenizerBase | None,
    max_file_bytes: int,
    **fields: Any,
) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty: give a new folder")
    tensors: dict[str, tuple[int, Callable[[], np.ndarray]]] = {}
    for param_path, leaf in _leaves(params):
        names = tensor_names(param_path, config.num_hidden_layers)
        for i, name in enumerate(names):
            fetch = functools.partial(_fetch, param_path, leaf, i)
            tensors[name] = leaf.nbytes // len(names), fetch
    write_tensors(path, tensors, max_file_bytes)
    tokens: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
        _for_transformers_4(path / "tokenizer_config.json")
        tokens = {name: getattr(tokenizer, name) for name in tokens}
    write_config(path, config, head, dtype=str(jax.tree.leaves(params)[0].dtype), **(tokens | fields))


def _for_transformers_4(path: Path) -> None:
    """Names the tokenizer's class as transformers 4 and 5 know it, and its outputs: 4 would add a third."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields["tokenizer_class"] == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    fields.setdefault("model_input_names", ["input_ids", "attention_mask"])
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _fetch(path: ParamPath, leaf: jax.Array | np.ndarray, layer: int) -> np.ndarray:
    array = np.asarray(leaf[layer] if _stacked(path) else leaf)
    return array.T if _transposed(path) else array
