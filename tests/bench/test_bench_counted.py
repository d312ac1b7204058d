"""FLOPs from shapes: of layers that can be counted by hand, and of published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.bench import published, shapes
from bvllm_adapters.bench.counted import Counter, Setting
from bvllm_adapters.bench.measure import bench, count
from bvllm_adapters.bench.reading import Reading
from bvllm_adapters.bench.rows import TOTAL
from bvllm_adapters.bench.shapes import empty, flops_of, in_shape, shape_of
from bvllm_adapters.config import plan
from bvllm_qwen2.tiny import tiny_model

STAGES = ["frame_selector", "spatial_sampler"]


def test_a_linear_layer():
    real = nn.Linear(30, 20)
    assert flops_of(lambda: real(torch.zeros(7, 30)))[1] == 2 * 7 * 30 * 20
    layer = in_shape(real)
    out, flops = shape_of(lambda: layer(torch.empty(7, 30)))
    assert out.shape == (7, 20) and flops == 2 * 7 * 30 * 20


ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.3},
    "grouped": {"enable_gqa": True},
    "masked": {"attn_mask": torch.ones(9, 11, dtype=torch.bool).tril(2)},
    "biased": {"attn_mask": torch.linspace(-2, 2, 99).view(9, 11)},
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention(kind):
    """Two products for each pair of a query and a key, on whichever torch, as it is and in shape;
    and with torch's own values."""
    settings = ATTENTION[kind]
    heads = 2 if "enable_gqa" in settings else 6
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, count, length, width, generator=draw)
        for count, length, width in ((6, 9, 8), (heads, 11, 8), (heads, 11, 16))
    )
    formula = 2 * 3 * 6 * 9 * 11 * (8 + 16)
    own = F.scaled_dot_product_attention(query, key, value, **settings)
    found, flops = flops_of(lambda: F.scaled_dot_product_attention(query, key, value, **settings))
    torch.testing.assert_close(found, own)
    assert flops == formula
    shape, flops = shape_of(
        lambda: F.scaled_dot_product_attention(
            empty(3, 6, 9, 8), empty(3, heads, 11, 8), empty(3, heads, 11, 16), **settings
        )
    )
    assert shape.shape == own.shape and flops == formula


def test_counting_nothing_is_an_error(monkeypatch):
    """As when attention is a kernel that torch's counter does not know."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = in_shape(Qwen2ForCausalLM(config))
    monkeypatch.setattr(shapes, "attention", lambda query, *args, **kwargs: query)
    with pytest.raises(RuntimeError, match="attention: counted 0 FLOPs, wanted more"):
        Reading.of(model)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_copy_in_shape_leaves_the_model_alone(device):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to(device, torch.bfloat16)
    ghost = in_shape(model)
    for name, value in model.state_dict().items():
        copied = ghost.state_dict()[name]
        assert isinstance(copied, FakeTensor) and not isinstance(value, FakeTensor)
        assert (copied.shape, copied.dtype) == (value.shape, value.dtype)
        assert copied.device.type == "cpu" and value.device.type == device


def test_reading_is_the_same_for_long_prompts_and_short():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = in_shape(Qwen2ForCausalLM(config))
    reading = Reading.of(model)
    length = 77
    _, flops = shape_of(
        lambda: model(inputs_embeds=torch.empty(1, length, 32), use_cache=True, logits_to_keep=1)
    )
    assert reading.flops(1, length) + reading.pair * length * (length - 1) // 2 == flops
    assert reading.logits == 2 * 32 * 50
    assert reading.pair == 3 * 2 * 2 * 32
    # q, k, v and o; gate, up and down. Rotary angles are a product in some transformers.
    layer = 2 * 32 * (32 + 16 + 16 + 32) + 3 * 2 * 32 * 48
    assert reading.token in (3 * layer, 3 * layer + 2 * 4)
    assert reading.cache_bytes == 3 * 2 * 16 * 4


@pytest.mark.slow
def test_published_sizes():
    """The paper's model under 576 tokens, against counts by hand; see the comments."""
    model, processor = published.build("BvllmQwen2ForConditionalGeneration", dtype=torch.bfloat16)
    assert all(weight.is_meta for weight in model.parameters())
    assert sum(p.numel() for p in model.vision_tower.parameters()) == pytest.approx(986e6, rel=1e-3)
    rows = count(model, processor, frames=[240], max_tokens=576)
    flops = {(row.stage, row.wrapped): row.flops for row in rows}
    # A block of EVA-CLIP-g: 257 tokens, width 1408, inner width 6144; 39 blocks.
    block = 257 * 2 * (4 * 1408**2 + 2 * 1408 * 6144) + 4 * 257**2 * 1408
    patches = 256 * 2 * 3 * 14 * 14 * 1408
    assert flops["tower", True] == 240 * (39 * block + patches)
    assert flops["tower", False] == flops["tower", True]

    # Qwen2-7B: 28 layers of width 3584, keys of width 512, inner width 18944; 64 tokens of text.
    def prefill(tokens):
        layer = 2 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
        pairs = tokens * (tokens + 1) // 2
        return 28 * (tokens * layer + 4 * pairs * 3584) + 2 * 3584 * 152064

    assert flops["prefill", True] == pytest.approx(prefill(576 + 64), rel=1e-6)
    assert flops["prefill", False] == pytest.approx(prefill(240 * 256 + 64), rel=1e-6)
    (cache,) = (row.bytes for row in rows if row.stage == "prefill" and not row.wrapped)
    assert cache == (240 * 256 + 64) * 28 * 2 * 512 * 2


SMALL_LLM = {
    "vocab_size": 40000,  # the processor's words
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL_TOWER = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
}
SMALL_QFORMER = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
SMALL = {
    "Videollama2MistralForCausalLM": SMALL_LLM
    | {"mm_vision_config": SMALL_TOWER, "mm_hidden_size": 48, "mm_qformer_config": SMALL_QFORMER},
    "Videollama2Qwen2ForCausalLM": SMALL_LLM
    | {"mm_vision_config": SMALL_TOWER, "mm_hidden_size": 48, "mm_qformer_config": SMALL_QFORMER},
    "LlavaLlamaAttForCausalLM": SMALL_LLM
    | {
        "mm_vision_config": SMALL_TOWER,
        "mm_hidden_size": 48,
        "mm_qformer_config": SMALL_QFORMER | {"encoder_width": 48},
    },
    "BvllmQwen2ForConditionalGeneration": {
        "text_config": SMALL_LLM | {"model_type": "qwen2"},
        "vision_config": SMALL_TOWER | {"model_type": "bvllm_eva_vision"},
        "balanced_tokenizer": {"qformer_width": 48, "qformer_layers": 2, "qformer_heads": 4},
    },
}
OWN_TOKENS = {  # of 16 frames of 4 x 4 patches
    "Videollama2MistralForCausalLM": (16 // 2 + 1) * (4 // 2 + 1) ** 2,
    "Videollama2Qwen2ForCausalLM": (16 // 2) * (4 // 2) ** 2,
    "LlavaLlamaAttForCausalLM": 16 * 2,
    "BvllmQwen2ForConditionalGeneration": 16 * 16,
}


def test_every_known_host_is_tried():
    assert set(SMALL) == set(OWN_TOKENS) == set(published.hosts_with_sizes())


SLOW = ("Videollama2Qwen2ForCausalLM", "LlavaLlamaAttForCausalLM")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SMALL],
)
def test_each_host_runs_in_small(name):
    model, processor = published.build(name, device="cpu", sizes=SMALL[name])
    rows = bench(model, processor, frames=[16], repeats=1, new_tokens=3, max_tokens=20)
    tokens = {row.wrapped: row.tokens for row in rows}
    assert tokens == {True: 20, False: OWN_TOKENS[name]}
    assert all(row.seconds is not None for row in rows)
    counted = count(model, processor, frames=[16], new_tokens=3, max_tokens=20)
    for row, other in zip(rows, counted, strict=True):
        assert (row.stage, row.wrapped, row.tokens) == (other.stage, other.wrapped, other.tokens)
        if row.stage in ("tower", TOTAL):
            assert row.flops > 0 and other.flops > 0


def test_an_unknown_host():
    with pytest.raises(ValueError, match="host: got 'Nobody', wanted one of"):
        published.build("Nobody")


@pytest.mark.parametrize("left_out", [["spatial_sampler"], ["frame_selector"], STAGES])
@pytest.mark.parametrize("max_tokens", [None, 40])
def test_what_is_expected_of_a_tokenizer_without_stages(left_out, max_tokens):
    """As many tokens as it makes of a video, in which every query finds a frame of its own."""
    model, _ = tiny_model()
    config = replace(model.balanced_tokenizer.config, num_frames=3, max_tokens=max_tokens)
    stages = dict.fromkeys(left_out)
    model.balanced_tokenizer = tokenizer = BalancedTokenizer(config, **stages).eval()
    frame, pixels = torch.empty(1, 1, 3, dtype=torch.uint8), torch.empty(1, 3, 64, 64)
    counter = Counter(model, Setting("?", 5, 2, frame, pixels))
    trace = counter.expected(7)
    most = plan(
        config, 7,
        tokens_per_frame=None if tokenizer.spatial_sampler else 16,
        all_frames=tokenizer.frame_selector is None,
    )  # fmt: skip
    assert trace.num_tokens == sum(frame.tokens for frame in trace.frames) == most
    work = counter.wrapped(trace)
    assert work["sampler"].bytes == len(trace.frames) * 64 * 4 * (
        config.tokens_per_frame if tokenizer.spatial_sampler else 16
    )
