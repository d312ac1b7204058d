"""Tiny CLIP and SigLIP models of transformers' own classes, with tokenizers, in folders as the hub
has them. Made here; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from torch import nn

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
WORDS = (
    "what is the man in red doing with a dog on the wall where who when how many people are there "
    "taped to it before after banana clock left right first last colour green blue"
).split()


def tiny_clip(folder: Path, limit: int = 77) -> Path:
    """CLIP: byte-level words, pictures by their shortest edge and middle."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {word: i for i, word in enumerate([*words, "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[])
    last = len(vocab) - 1
    config = transformers.CLIPConfig(
        text_config={
            **SIZES,
            "vocab_size": len(vocab),
            "max_position_embeddings": limit,
            "bos_token_id": 0,
            "eos_token_id": last,
            "pad_token_id": last,
        },
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    square = {"height": 32, "width": 32}
    processor = _by_pil("CLIP")(size={"shortest_edge": 32}, crop_size=square)
    return _saved(folder, transformers.CLIPModel(config), tokenizer, processor)


def tiny_siglip2(folder: Path) -> Path:
    """SigLIP 2 of a fixed size, which calls itself a SigLIP: Gemma's kind of tokenizer."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    words += [chr(i) for i in range(97, 123)] + ["\u2581", "?", ".", ","]
    tokenizer = transformers.GemmaTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], padding_side="right"
    )
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return _siglip(folder, len(words), tokenizer, resample=2)


def tiny_siglip(folder: Path) -> Path:
    """SigLIP: sentencepiece's tokenizer."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]),
        model_prefix=str(folder / "spiece"),
        vocab_size=64,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    tokenizer = transformers.SiglipTokenizer(
        vocab_file=str(folder / "spiece.model"), model_max_length=64
    )
    return _siglip(folder, len(tokenizer), tokenizer, resample=3)


def _siglip(folder: Path, words: int, tokenizer: Any, resample: int) -> Path:
    config = transformers.SiglipConfig(
        text_config={
            **SIZES,
            "vocab_size": words,
            "max_position_embeddings": 64,
            "projection_size": 32,
        },
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
    )
    half = [0.5] * 3
    processor = _by_pil("Siglip")(
        size={"height": 32, "width": 32}, image_mean=half, image_std=half, resample=resample
    )
    return _saved(folder, transformers.SiglipModel(config), tokenizer, processor)


def _by_pil(family: str) -> Any:
    name = f"{family}ImageProcessor"
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def _saved(folder: Path, model: nn.Module, *parts: Any) -> Path:
    """With weights that are loud: pictures and texts that differ come out far apart."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                fan = weight[0].numel()
                spread = 1.0 if "embedding" in name and weight.dim() == 2 else 1.3 / fan**0.5
                weight.copy_(torch.randn(weight.shape, generator=rng) * spread)
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder


SCOUTS = {"clip": tiny_clip, "siglip": tiny_siglip, "siglip2": tiny_siglip2}
