"""A small chat tokenizer of English words, made offline: for tiny models in demos and tests."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import WordPiece as WordPieceDecoder
from transformers import PreTrainedTokenizerFast

from bvllm_adapters.question import VOCABULARY, word_piece


def tiny_tokenizer(
    chat_template: str | None = None, words: Sequence[str] | None = None
) -> PreTrainedTokenizerFast:
    """Qwen2's special tokens and these WordPieces; None: bert-base-uncased's."""
    pieces = word_piece(words or VOCABULARY.read_text(encoding="utf-8").splitlines())
    pieces.decoder = WordPieceDecoder()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        unk_token="[UNK]",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=chat_template,
    )
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    return tokenizer
