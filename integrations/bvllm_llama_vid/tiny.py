"""A tiny LLaMA-VID with random weights, written in the published layout: to try things offline."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from bvllm_llama_vid.configuration import LlavaConfig
from bvllm_llama_vid.modeling import LlavaLlamaAttForCausalLM
from bvllm_llama_vid.preprocessing import SYSTEM

WORDS = (
    f"{SYSTEM} USER: What is taped to the wall? ASSISTANT: A yellow banana with grey tape.",
    "Who walks over the meadow, and what happens in the end? A rabbit wakes up and looks around.",
    "How many people are there, where do they go, and when do they come back? Two; home; at noon.",
)


def tiny_config(vocab_size: int) -> LlavaConfig:
    """The published configuration in small: EVA tower, pretrained kind of Q-Former, "mean"."""
    config = LlavaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        # Louder than usual, so that what goes in can be told from what comes out.
        initializer_range=0.1,
    )
    for name, value in {
        "architectures": ["LlavaLlamaAttForCausalLM"],
        "mm_vision_tower": "./model_zoo/LAVIS/eva_vit_tiny.pth",
        "mm_vision_config": {
            "image_size": 56,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
        },
        "mm_qformer_config": {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "encoder_width": 48,
        },
        "mm_hidden_size": 48,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "bert_type": "qformer_pretrain",
        "num_query": 8,
        "compress_type": "mean",
    }.items():
        setattr(config, name, value)
    return config


def write_tiny_checkpoint(folder: str | Path, seed: int = 0) -> None:
    """Weights in two shards with an index, config.json and tokenizer.model; its answers are noise.

    torch's global generator is left as it was.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = tiny_tokenizer()
    (folder / "tokenizer.model").write_bytes(pieces)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaLlamaAttForCausalLM(tiny_config(vocab_size=320))
        for parameter in model.get_vision_tower().parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False))
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    names = list(state)
    shards = {
        f"pytorch_model-0000{i}-of-00002.bin": part
        for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1)
    }
    for file, part in shards.items():
        torch.save({name: state[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: f for f, part in shards.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2))


def tiny_tokenizer() -> bytes:
    """A SentencePiece model of a Llama's kind with 320 pieces, bytes among them."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
