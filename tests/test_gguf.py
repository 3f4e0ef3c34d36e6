"""GGUF files: what transformers computes from one is computed here."""

import functools
import subprocess
import sys
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from jax.sharding import NamedSharding, PartitionSpec
from transformers import AutoConfig, AutoModelForCausalLM

from rerankjax.gguf_file import GGUFTensor, read_gguf
from rerankjax.model.config import RopeScaling
from rerankjax.model.decoder import hidden_states, to_logits
from rerankjax.model.gguf import stored_name
from rerankjax.model.sharding import make_mesh
from rerankjax.model.weights import load, load_reranker, save
from rerankjax.reranker.rerank import Reranker

VOCAB = 96
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
F32 = GGMLQuantizationType.F32


def make_model(model_type="llama", **changes):
    """A tiny random model of transformers; its biases and norms are random too."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    # transformers takes Qwen3's head_dim to be 128, whatever the file says.
    heads |= {"head_dim": 128} if model_type == "qwen3" else {}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, vocab_size=VOCAB, **(sizes | heads | changes))
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.15, generator=generator)
    return model.eval()


def write_gguf(path, model, quantisation=F32, drop=(), tensors=None, **metadata):
    """The model as llama.cpp's convert_hf_to_gguf.py writes it: matrices quantised, Llama's queries and keys permuted.

    drop: names of fields and tensors to leave out; tensors: arrays to add or change; metadata: fields likewise, in
    which None leaves one out and "__" stands for ".".
    """
    c, arch = model.config, model.config.model_type
    fields = {
        f"{arch}.block_count": c.num_hidden_layers,
        f"{arch}.context_length": c.max_position_embeddings,
        f"{arch}.embedding_length": c.hidden_size,
        f"{arch}.feed_forward_length": c.intermediate_size,
        f"{arch}.attention.head_count": c.num_attention_heads,
        f"{arch}.attention.head_count_kv": c.num_key_value_heads,
        f"{arch}.attention.key_length": getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        f"{arch}.rope.freq_base": c.rope_parameters["rope_theta"],
        f"{arch}.vocab_size": c.vocab_size,
    } | {name.replace("__", "."): value for name, value in metadata.items()}
    writer = GGUFWriter(path, fields.pop("general.architecture", arch))
    for name, value in fields.items():
        if name in drop or value is None:
            continue
        kind = {int: "uint32", float: "float32", str: "string", bool: "bool", list: "array"}[type(value)]
        getattr(writer, f"add_{kind}")(name, value)
    arrays = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        array, heads = tensor.numpy(), {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
        if arch == "llama" and name.split(".")[-2] in heads:
            count = heads[name.split(".")[-2]]
            array = array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        arrays[stored_name(name)] = array
    for name, array in (arrays | (tensors or {})).items():
        if name not in drop:
            kind = quantisation if array.ndim > 1 else F32
            if array.dtype != np.float32:
                writer.add_tensor(name, array)
            else:
                writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, 40))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params):
    return to_logits(config, params, hidden_states(config, params, jnp.asarray(TOKENS), jnp.ones(TOKENS.shape, bool)))


def torch_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


def assert_same_logits(path, model):
    expected = torch_logits(model)
    np.testing.assert_allclose(logits_of(*load(path)), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("model_type", "quantisation", "changes"),
    [
        ("llama", "F32", {}),
        ("llama", "Q4_1", {"num_key_value_heads": 4}),
        ("llama", "Q8_0", {"tie_word_embeddings": False}),
        ("qwen2", "F16", {}),
        ("qwen2", "Q5_0", {"tie_word_embeddings": False}),
        ("qwen3", "BF16", {}),
        ("qwen3", "Q4_0", {}),
    ],
)
def test_logits_are_those_of_transformers_reading(tmp_path, model_type, quantisation, changes):
    path = write_gguf(tmp_path / "m.gguf", make_model(model_type, **changes), GGMLQuantizationType[quantisation])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    assert_same_logits(path, theirs)


@pytest.mark.parametrize(
    ("changes", "metadata"),
    [
        ({"attention_bias": True}, {}),
        ({"head_dim": 32}, {"llama__rope__dimension_count": 32}),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}},
            {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}},
            {"llama__rope__scale_linear": 4.0},
        ),
    ],
)
def test_what_transformers_does_not_read_is_as_in_the_model_it_was_made_from(tmp_path, changes, metadata):
    model = make_model(**changes)
    assert_same_logits(write_gguf(tmp_path / "m.gguf", model, **metadata), model)


def rope_freqs(theta, half, *, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    """What llama.cpp's converter writes for rope_type llama3."""
    divisors = []
    for i in range(half):
        wavelength = 2 * np.pi * theta ** (i / half)
        turns = original_max_position_embeddings / wavelength
        smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        blend = 1 / ((1 - smooth) / factor + smooth) if 0 <= smooth <= 1 else 1.0
        divisors.append(factor if smooth < 0 else blend)
    return np.array(divisors, np.float32)


def test_llama3_is_recognised_by_its_divisors(tmp_path):
    model = make_model(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    divisors = rope_freqs(5e5, 8, **LLAMA3)
    assert len({*divisors.round(3)}) == 3  # kept, blended and divided
    path = write_gguf(tmp_path / "m.gguf", model, tensors={"rope_freqs.weight": divisors})
    assert load(path)[0].rope_scaling == RopeScaling("llama3", *LLAMA3.values())
    assert_same_logits(path, model)
    divisors[-3] = 2.0
    path = write_gguf(tmp_path / "other.gguf", model, tensors={"rope_freqs.weight": divisors})
    with pytest.raises(ValueError, match=r"other\.gguf: rope_freqs\.weight .* is not supported"):
        load(path)


def readable():
    for kind, (_, size) in GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        yield kind


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bits are infinities too
@pytest.mark.parametrize("kind", list(readable()), ids=lambda kind: kind.name)
def test_a_part_is_that_part_of_the_whole(tmp_path, kind):
    rows, width = 150, 512
    block, size = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 256, (rows, width // block * size), np.uint8)
    (tmp_path / "data").write_bytes(b"head" + data.tobytes())
    tensor = GGUFTensor("t", tmp_path / "data", (rows, width), kind, 4)
    whole = gguf.dequantize(data, kind)
    for part in [(slice(0, 150), slice(0, 512)), (slice(70, 149), slice(3, 259)), (slice(5, 6), slice(511, 512))]:
        out = np.full(whole[part].shape, -1, np.float32)
        for place, values in tensor.read_rows(part):
            out[place] = values
        np.testing.assert_array_equal(out, whole[part])


def test_each_device_gets_its_part_in_the_type_asked_for(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", make_model(attention_bias=True), GGMLQuantizationType.Q8_0)
    mesh = make_mesh(devices=jax.devices()[:8])
    _, whole = load(path)

    def split(axis, path, shape):
        axes = [None] * len(shape)
        if len(shape) > axis and shape[axis] % 8 == 0:
            axes[axis] = "data"
        return NamedSharding(mesh, PartitionSpec(*axes))

    for axis in (0, 1, 2):  # 8 parts of 4 heads: through the middle of a head
        params = load(path, sharding=functools.partial(split, axis), dtype=jnp.bfloat16)[1]
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.bfloat16), b), whole, params)
    assert params["layers"]["q_proj"]["kernel"].addressable_shards[0].data.shape == (2, 64, 8)


def test_a_loaded_model_is_saved_for_transformers(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", make_model(), GGMLQuantizationType.Q4_1)
    save(tmp_path / "saved", *load(path))
    assert_same_logits(path, AutoModelForCausalLM.from_pretrained(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general__architecture": "gemma"}, ['general.architecture = "gemma"', "llama, qwen2, qwen3"]),
        ({"drop": ["llama.context_length"]}, ["llama.context_length", "convert"]),
        ({"drop": ["llama.attention.head_count"]}, ["llama.attention.head_count", "convert"]),
        ({"drop": ["token_embd.weight"]}, ["token_embd.weight", "convert"]),
        (
            {"drop": ["blk.1.attn_q.weight", "output_norm.weight"]},
            ["blk.1.attn_q.weight", "output_norm.weight", "lacks"],
        ),
        ({"tensors": {"blk.0.ffn_up.bias": np.zeros(96, np.float32)}}, ["unexpected blk.0.ffn_up.bias", "metadata"]),
        ({"tensors": {"cls.output.weight": np.zeros((1, 64), np.float32)}}, ["unexpected cls.output.weight"]),
        (
            {"tensors": {"blk.0.ffn_up.weight": np.zeros((64, 64), np.float32)}},
            ["blk.0.ffn_up.weight has shape (64, 64)", "(96, 64)", "metadata"],
        ),
        ({"tensors": {"blk.0.ffn_up.weight": np.zeros((96, 64), np.int8)}}, ["blk.0.ffn_up.weight is I8", "Q8_0"]),
        ({"llama__expert_count": 8}, ["llama.expert_count = 8"]),
        ({"llama__attention__sliding_window": 128}, ["llama.attention.sliding_window = 128", "512"]),
        ({"llama__rope__dimension_count": 8}, ["llama.rope.dimension_count = 8", "16"]),
        ({"llama__rope__scaling__type": "yarn"}, ['rope_type = "yarn"']),
        ({"llama__attention__head_count_kv": 3}, ["num_key_value_heads = 3"]),
        ({"llama__feed_forward_length": [96, 64]}, ["llama.feed_forward_length differs by layer"]),
        ({"split__count": 3}, ["split.count = 3", "--merge"]),
    ],
)
def test_what_is_not_supported_is_named_with_its_file(tmp_path, changes, said):
    path = write_gguf(tmp_path / "bad.gguf", make_model(), **changes)
    with pytest.raises(ValueError, match=r"bad\.gguf") as error:
        load(path)
    assert [text for text in said if text not in str(error.value)] == []


def test_a_cut_file_is_refused_wherever_it_was_cut(tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf", make_model()).read_bytes()
    data = read_gguf(tmp_path / "whole.gguf").tensors["token_embd.weight"].offset
    for size in [0, 3, 4, 20, 25, 100, data // 2, data - 40, data, data + 100, len(whole) - 40_000]:
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.gguf is not a complete GGUF file .*: download the file again"):
            load(tmp_path / "cut.gguf")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete GGUF file"):
        load(tmp_path / "model.safetensors")
    for missing in ("missing.gguf", "owner/missing.gguf"):  # not asked of the hub
        with pytest.raises(FileNotFoundError, match=r"missing\.gguf is not a folder or \.gguf file"):
            load(missing)


def test_a_reranker_needs_a_head(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", make_model())
    for from_file in (load_reranker, Reranker.from_pretrained):
        with pytest.raises(ValueError, match=r"m\.gguf is a file, but a reranker needs a score head"):
            from_file(path)


def test_loading_peaks_at_little_more_than_the_parameters(tmp_path):
    def write(name, width, layers):
        """A file of zeros; returns the bytes of its parameters in float32."""
        model_sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model("llama", vocab_size=32 * width, num_attention_heads=8, **model_sizes)
            )
        zeros = functools.partial(np.zeros, dtype=np.float32)
        model.state_dict = lambda: {n: torch.from_numpy(zeros(p.shape)) for n, p in model.named_parameters()}
        write_gguf(tmp_path / name, model, GGMLQuantizationType.Q8_0)
        return sum(4 * p.numel() for p in model.parameters())

    write("tiny", 64, 1)
    size = write("large", 768, 4)
    benchmark = Path(__file__).parent.parent / "benchmarks" / "loading.py"
    command = [sys.executable, benchmark, "--measure", tmp_path]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])
    assert 0.9 < peak / size < 1.3
