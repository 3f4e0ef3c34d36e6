"""The roofline's counts beside the products that JAX traces, XLA's own count, and numbers worked out by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerankjax.capacity import roofline
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import (
    Cache,
    Prefix,
    decode_step,
    hidden_states,
    init_decoder,
    packed_hidden_states,
    to_logits,
    unstack,
)
from rerankjax.model.deepseek import DEEPSEEK_CODER
from rerankjax.model.lora import FULL, LoraConfig, adapter_shapes, attach
from rerankjax.model.packing import PackConfig, pack

B, L = 3, 24
# One layer, two heads that share a key/value head, and sizes small enough to add up by hand.
MINUTE = ModelConfig(10, 4, 8, 1, 2, 1, 2, 32, tie_word_embeddings=False)


def products(jaxpr) -> int:
    """2 m n k of every matrix product of a traced function, those in a scan as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            total += times * products(inner) if hasattr(inner, "eqns") else 0
    return total


def traced(function, *arguments) -> int:
    return products(jax.make_jaxpr(function)(*arguments).jaxpr)


def shapes(config: ModelConfig):
    return jax.eval_shape(functools.partial(init_decoder, config), jax.random.key(0))


def batch(rows: int = B, length: int = L):
    return jax.ShapeDtypeStruct((rows, length), jnp.int32), jax.ShapeDtypeStruct((rows, length), jnp.bool_)


def unmasked(config: ModelConfig, rows: int, length: int) -> int:
    """The FLOPs of the pairs that a short row's mask throws away, but that are made all the same."""
    pairs = rows * (length**2 - roofline.causal_pairs(length))
    return roofline.forward_flops(config, 0, pairs, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "num_key_value_heads": 1},
        {"attention_bias": True},
    ],
)
def test_parameters_are_those_that_initialisation_makes(tiny, changes):
    config = dataclasses.replace(tiny, **changes)
    made = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(config)))
    assert roofline.parameter_count(config) == made


@pytest.mark.parametrize("lora", [LoraConfig(4), LoraConfig(2, targets=("k_proj", "down_proj"))])
def test_adapters_have_the_parameters_of_their_shapes(tiny, lora):
    made = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(adapter_shapes(tiny, lora)))
    assert roofline.adapter_count(tiny, lora) == made


@pytest.mark.parametrize(
    ("name", "parameters"), [("1.3B", 1_346_471_936), ("6.7B", 6_740_512_768), ("33B", 33_342_991_360)]
)
def test_deepseek_coder_has_the_parameters_that_its_checkpoints_have(name, parameters):
    assert roofline.parameter_count(DEEPSEEK_CODER[name]) == parameters


def test_a_forward_pass_has_the_products_that_jax_traces(tiny):
    def forward(params, tokens, mask):
        return to_logits(tiny, params, hidden_states(tiny, params, tokens, mask)[:, -1:])

    counted = traced(forward, shapes(tiny), *batch())
    assert counted == roofline.forward_flops(tiny, B * L, B * L * L, B)
    assert counted == roofline.prefill_cost(tiny, B, L).flops + unmasked(tiny, B, L)


def test_a_decoding_step_has_the_products_that_jax_traces(tiny):
    own, prompt, prompts, rows = 5, 7, 2, 6

    def step(params, tokens):
        heads, size = tiny.num_key_value_heads, tiny.head_dim
        caches = tuple(Cache(*(jnp.zeros((rows, heads, own, size)),) * 2) for _ in range(2))
        keys = jnp.zeros((prompts, heads, prompt, size))
        prefixes = (Prefix(keys, keys, jnp.ones((prompts, prompt), bool)),) * 2
        layers = unstack(tiny, params["layers"])
        seen = jnp.ones((rows, own), bool)
        return decode_step(tiny, params, layers, tokens, tokens, seen, caches, jnp.int32(0), prefixes)

    counted = traced(step, shapes(tiny), jax.ShapeDtypeStruct((rows,), jnp.int32))
    assert counted == roofline.decode_cost(tiny, rows, own, prefix=prompt, prefixes=prompts).flops


def test_scoring_reads_each_prompt_once(tiny):
    prompts, each, prompt, length = 2, 3, 8, 6
    total = prompt + each * length
    (packed,), _ = pack([], PackConfig(prompts, total, each * length, each, each))
    counted = traced(lambda params, packed: packed_hidden_states(tiny, params, packed), shapes(tiny), packed)
    expected = roofline.score_cost(tiny, prompts, prompt, each, length).flops
    seen = roofline.causal_pairs(prompt) + each * roofline.causal_pairs(length, prompt)
    assert counted == expected + roofline.forward_flops(tiny, 0, prompts * (total**2 - seen), 0)


def update_cost(config, batch, length, lora=FULL, microbatches=1, **how):
    """Gradients, summed over so many parts of the batch, and Adam's part."""
    part = roofline.gradient_cost(config, batch // microbatches, length, lora=lora, **how)
    return part * microbatches + roofline.adam_cost(config, lora)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("lora", [FULL, LoraConfig(4), LoraConfig(2, targets=("q_proj", "v_proj"))])
def test_an_update_has_the_products_that_jax_traces(tiny, lora, remat):
    config = dataclasses.replace(tiny, remat=remat)
    base = shapes(config)
    trained = adapter_shapes(config, lora) if lora.rank else base

    def loss(trained, base, tokens, mask):
        params = attach(base if lora.rank else None, trained, lora)
        return jnp.sum(to_logits(config, params, hidden_states(config, params, tokens, mask)))

    counted = traced(jax.grad(loss), trained, base, *batch())
    passes = 4 if remat == "full" else 3
    cost = update_cost(config, B, L, lora=lora)
    assert counted == cost.flops + passes * unmasked(config, B, L)
    assert update_cost(config, B, L, lora=lora, remat=False).flops <= cost.flops


def test_xla_counts_a_few_percent_more():
    """It counts norms, rotations and softmaxes too; of a scan's body one round, and this model has one layer."""
    config = ModelConfig(512, 256, 704, 1, 4, 2, 64, 128)

    def forward(params, tokens, mask):
        return to_logits(config, params, hidden_states(config, params, tokens, mask))

    (device,) = jax.devices()[:1]
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=jax.sharding.SingleDeviceSharding(device)),
        (shapes(config), *batch(2, 64)),
    )
    analysis = jax.jit(forward).lower(*placed).compile().cost_analysis()
    counted = roofline.forward_flops(config, 128, 2 * 64 * 64, 128)
    assert counted < analysis["flops"] < 1.04 * counted


def test_causal_pairs_are_those_of_the_mask():
    for length, prefix in ((1, 0), (5, 0), (4, 3)):
        assert roofline.causal_pairs(length, prefix) == np.tril(np.ones((length, length + prefix)), prefix).sum()


def test_decoding_by_hand():
    # Kernels 16 + 8 + 8 + 16 + 3 * 32 = 144; norms 12; two tables of 40.
    assert roofline.parameter_count(MINUTE) == 236
    cost = roofline.decode_cost(MINUTE, 3, 5, prefix=7, prefixes=1)
    # 2 * 144 * 3 tokens; scores and values 2 * 2 * 2 * 2 FLOPs for each of 3 * 12 pairs; 2 * 40 * 3 logits.
    assert cost.flops == 864 + 16 * 36 + 240
    # 196 parameters and 3 rows of the embeddings; a token's keys and values are 4 numbers: 7 + 15 read, 3 written.
    assert cost.bytes == 2 * (196 + 3 * 4) + 8 * (22 + 3)
    assert roofline.decode_cost(MINUTE, 3, 5, prefix=7).bytes == cost.bytes + 8 * 14


def test_reading_by_hand():
    cost = roofline.prefill_cost(MINUTE, 2, 3)
    # Six tokens; six causal pairs a row; logits of each row's end.
    assert cost.flops == 288 * 6 + 16 * 12 + 80 * 2
    assert cost.bytes == 2 * (196 + 6 * 4) + 8 * 6
    # A reranker needs no logits, and so no table for them.
    assert roofline.prefill_cost(MINUTE, 2, 3, logits=0) == roofline.Cost(288 * 6 + 16 * 12, cost.bytes - 2 * 40)


def test_an_update_by_hand():
    cost = update_cost(MINUTE, 2, 3, remat=True)
    # Parameters three times; each token's input of 4 numbers kept; a gradient, and 3 numbers read and written: 8 * 4.
    assert cost.bytes == 3 * 2 * 236 + 2 * 2 * 6 * 4 + 32 * 236
    # What a layer's products were given is 4 + 4 + 4 + 8 numbers, what they gave 4 + 2 + 2 + 4 + 8 + 8 + 4.
    assert update_cost(MINUTE, 2, 3, remat=False).bytes == 2 * 2 * 236 + 2 * 2 * 6 * 52 + 32 * 236
    # Two microbatches read parameters and add to gradients twice.
    twice = update_cost(MINUTE, 2, 3, remat=True, microbatches=2)
    assert twice == roofline.Cost(cost.flops, cost.bytes + 3 * 2 * 236 + 8 * 236)


def test_the_slower_of_compute_and_memory_sets_the_time():
    chip = roofline.Chip("made up", flops_per_second=100.0, bytes_per_second=10.0, memory_bytes=1.0, source="")
    assert roofline.seconds(roofline.Cost(200, 10), chip) == 2.0
    assert roofline.seconds(roofline.Cost(200, 40), chip) == 4.0
    assert roofline.seconds(roofline.Cost(200, 40), chip, chips=8) == 0.5
    assert roofline.Cost(1, 2) + roofline.Cost(3, 4) * 2 == roofline.Cost(7, 10)


def test_one_sample_of_a_33b_model_is_bound_by_memory_and_its_prompt_by_compute():
    h100 = roofline.CHIPS["h100"]
    step = roofline.decode_cost(DEEPSEEK_CODER["33B"], 1, 1)
    # 66.2 GB of parameters that are read at 3.35 TB/s: about 20 ms a token, the figure that people quote.
    assert roofline.seconds(step, h100) == step.bytes / 3.35e12 == pytest.approx(0.0198, rel=0.01)
    prompt = roofline.prefill_cost(DEEPSEEK_CODER["33B"], 1, 1024)
    assert roofline.seconds(prompt, h100) == prompt.flops / 989.4e12
