"""A small chat tokenizer of English words, made offline: for tiny models in demos and tests."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import PreTrainedTokenizerFast

from bvllm_adapters.question import VOCABULARY


def tiny_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The bundled WordPiece vocabulary with Qwen2's special tokens."""
    words = VOCABULARY.read_text(encoding="utf-8").splitlines()
    pieces = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.normalizer = BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = BertPreTokenizer()
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
