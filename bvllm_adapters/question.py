"""The question as the Q-Formers read it: WordPiece ids, from a string or from a prompt's ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from bvllm_adapters.config import check_vocabulary
from bvllm_adapters.context import asking as asking  # where scripts look for it
from bvllm_adapters.weights.checkpoint import CheckpointError

VOCABULARY = Path(__file__).parent / "data" / "bert-base-uncased-vocab.txt"
PAD = 0
IGNORED_LABEL = -100
TAGS = ("<image>", "<video>")  # what stands for a visual input in text


def question_ids(
    questions: Sequence[str | Tensor], tokenize: Callable[[str], Tensor]
) -> list[Tensor]:
    """Each question as (L,) int64 ids, which it may be already.

    Raises:
        ValueError: one that is neither a string nor ids.
    """
    texts = []
    for i, question in enumerate(questions):
        ids = tokenize(question) if isinstance(question, str) else question
        if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.dtype != torch.int64:
            raise ValueError(
                f"questions[{i}]: got {type(ids).__name__}, "
                "wanted a string or a 1-D int64 tensor of WordPiece ids"
            )
        texts.append(ids)
    return texts


def as_text(question: str | Tensor) -> str:
    """A question that selectors without training can read; ValueError for its ids."""
    if not isinstance(question, str):
        raise ValueError(
            f"questions: got {type(question).__name__}, wanted strings, as the selector reads text"
        )
    return question


class QuestionTokenizer:
    """bert-base-uncased WordPiece, offline: "What?" -> [CLS] what ? [SEP].

    Args:
        max_length: tokens at most, the two special ones included; what is too long loses its
            beginning, as a question's point tends to stand at its end.
        vocabulary: WordPieces, or a file with one a line; None: the bundled bert-base-uncased.
            To a file's InstructBLIP adds "[DEC]" as the last id (30522 of BERT's).
    """

    def __init__(
        self, max_length: int = 256, vocabulary: str | Path | Sequence[str] | None = None
    ) -> None:
        self.max_length = max_length
        if vocabulary is None or isinstance(vocabulary, str | Path):
            self._tokenizer = _word_piece_of(Path(vocabulary or VOCABULARY))
        else:
            self._tokenizer = word_piece(vocabulary)
        self._cls, self._sep = (self._tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def __call__(self, question: str) -> Tensor:
        """(L,) int64 ids of one question; an empty one is [CLS] [SEP]."""
        if not isinstance(question, str):
            raise ValueError(f"question: got {type(question).__name__}, wanted a string")
        ids = self._tokenizer.encode(question, add_special_tokens=False).ids
        ids = ids[max(0, len(ids) - (self.max_length - 2)) :]
        return torch.tensor([self._cls, *ids, self._sep])


@lru_cache(maxsize=8)
def question_tokenizer(max_length: int, vocabulary: tuple[str, ...] | None) -> QuestionTokenizer:
    """The one of these settings, made once: to know the words of a vocabulary takes a while."""
    return QuestionTokenizer(max_length, vocabulary)


def own_words(vocabulary: Path | Sequence[str]) -> tuple[str, ...] | None:
    """What a config's `vocabulary` says of the words of a checkpoint; None: the bundled ones.

    Raises:
        CheckpointError: a file that cannot be read, or words that are no WordPieces.
    """
    try:
        words = _words_of(vocabulary) if isinstance(vocabulary, Path) else tuple(vocabulary)
        check_vocabulary(words, len(words))
    except (OSError, ValueError) as error:
        name = vocabulary if isinstance(vocabulary, Path) else "vocabulary of the checkpoint"
        raise CheckpointError(f"{name}: cannot be read ({error})") from error
    return None if words == _words_of(VOCABULARY) else words


def _words_of(file: Path) -> tuple[str, ...]:
    words = file.read_text(encoding="utf-8").splitlines()
    return tuple(words) if "[DEC]" in words else (*words, "[DEC]")


@cache
def _word_piece_of(file: Path) -> Tokenizer:
    return word_piece(_words_of(file))


def word_piece(words: Sequence[str]) -> Tokenizer:
    """BERT's uncased tokenizer over these WordPieces, whose places are their ids."""
    model = WordPiece(
        {word: i for i, word in enumerate(words)}, unk_token="[UNK]", max_input_chars_per_word=100
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def without(text: str, tags: Collection[str] = TAGS) -> str:
    """A text with none of `tags` in it, nor one that leaving out others would form.

    >>> without("<vid<video>eo>What?")
    'What?'
    """
    kept: list[str] = []
    for char in text:
        kept.append(char)
        for tag in tags:  # none but the last characters kept can have become one
            if tag and char == tag[-1] and "".join(kept[-len(tag) :]) == tag:
                del kept[-len(tag) :]
                break
    return "".join(kept)


def pad(questions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(L_i,) ids each -> (B, L) ids padded on the right, and their (B, L) boolean mask."""
    ids = torch.nn.utils.rnn.pad_sequence(list(questions), batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(question) for question in questions], device=ids.device)
    return ids, torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]


def question_from_prompt(
    ids: Tensor,
    decode: Callable[[list[int]], str],
    *,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> str:
    """The text that a prompt asks, where nobody says what the question is.

    Args:
        ids: (L,) prompt ids; negative ones stand for images and videos and are left out.
        decode: ids -> text, of the language model's tokenizer, special tokens skipped.
        attention_mask: (L,), zero at padding.
        labels: (L,), where the prompt comes with answers. Then only the first run of ignored
            labels (-100) counts: what follows is an answer, or was asked after one.
    """
    for name, value in (("attention_mask", attention_mask), ("labels", labels)):
        if value is not None and value.shape != ids.shape:
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)}, wanted {tuple(ids.shape)} as ids"
            )
    read = ids >= 0
    if attention_mask is not None:
        read = read & attention_mask.bool()
    if labels is not None:
        answers = (labels != IGNORED_LABEL) & read
        read = read & (answers.cumsum(0) == 0)
    return decode(ids[read].tolist()).strip()
