"""Prompts as ids: a Llama's SentencePiece model, read as upstream's tokenizer reads it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.weights.json_file import CheckpointError, blamed, read_json
from bvllm_llama_vid.configuration import IMAGE_TOKEN_ID

IMAGE_TOKEN = "<image>"


class PromptTokenizer:
    """A Llama's SentencePiece model as upstream's tokenizer reads it, with `<image>` as -200.

    Upstream uses transformers 4's slow tokenizer. That of transformers 5 is built anew from the
    pieces and gives other ids around newlines and special tokens; so the model file is read by
    SentencePiece itself: text between special tokens is encoded on its own, the rest is theirs.

    Args:
        model: a tokenizer.model file. added: further special tokens, by their ids.
    """

    def __init__(self, model: Path, added: dict[str, int]) -> None:
        import sentencepiece

        self.model, self.added = model, added
        with blamed(model):
            self.pieces: Any = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self.bos_token_id: int = self.pieces.bos_id()
        self.eos_token_id: int = self.pieces.eos_id()
        control = (self.bos_token_id, self.eos_token_id, self.pieces.unk_id())
        self.special = {self.pieces.id_to_piece(i): i for i in control if i >= 0} | added
        self._split = re.compile(f"({'|'.join(map(re.escape, self.special))})")

    def __len__(self) -> int:
        return max(int(self.pieces.get_piece_size()), 1 + max(self.special.values()))

    def __call__(self, prompt: str) -> Tensor:
        """(L,) int64 ids of a prompt, a beginning-of-sentence first and -200 for each `<image>`."""
        ids = [self.bos_token_id]
        for i, chunk in enumerate(prompt.split(IMAGE_TOKEN)):
            ids += [IMAGE_TOKEN_ID] if i else []
            for text in self._split.split(chunk):
                if text in self.special:
                    ids.append(self.special[text])
                elif text:
                    ids += self.pieces.encode(text)
        return torch.tensor(ids)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text of ids, special tokens and placeholders left out."""
        special = set(self.special.values())
        size = self.pieces.get_piece_size()
        text: str = self.pieces.decode(
            [int(i) for i in ids if 0 <= int(i) < size and int(i) not in special]
        )
        return text

    def save(self, folder: Path) -> None:
        """tokenizer.model and added_tokens.json, into a checkpoint's folder."""
        shutil.copyfile(self.model, folder / "tokenizer.model")
        (folder / "added_tokens.json").write_text(json.dumps(self.added), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, config: Any = None) -> PromptTokenizer:
        """The one in a checkpoint folder (or in the one folder in it that holds one), with the
        tokens that upstream adds for this config.

        Raises:
            CheckpointError: for none, or several.
        """
        folder = Path(folder)
        found = [folder / "tokenizer.model"]
        if not found[0].is_file():
            found = sorted(folder.glob("*/tokenizer.model"))
        if len(found) != 1:
            raise CheckpointError(f"{folder}: holds {len(found)} tokenizer.model, wanted one")
        added: dict[str, int] = {}
        beside = found[0].parent / "added_tokens.json"
        if beside.is_file():
            added |= read_json(beside)
            if not all(type(i) is int and 0 <= i < 2**24 for i in added.values()):
                raise CheckpointError(f"{beside}: got {added}, wanted an id for each token")
        tokenizer = cls(found[0], added)
        for name, tokens in (
            ("mm_use_im_patch_token", ["<im_patch>"]),
            ("mm_use_im_start_end", ["<im_start>", "<im_end>"]),
        ):
            if getattr(config, name, False):
                for token in tokens:
                    added.setdefault(token, len(tokenizer))
                    tokenizer = cls(found[0], added)
        return tokenizer
