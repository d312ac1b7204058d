"""What a BalancedTokenizer is built from: one frozen record, checked when made, kept as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

FrameFeature = Literal["cls", "mean", "max"]
Evaluation = Literal["hard", "soft", "sample"]
Projection = Literal["mlp", "linear"]


@dataclass(frozen=True, kw_only=True)
class BalancedTokenizerConfig:
    """Sizes and settings of a `BalancedTokenizer`; the defaults are the paper's.

    Args:
        num_frames: frames the selector may choose from a video, the paper's L* (section 3.2).
        tokens_per_frame: visual tokens sampled from each chosen frame, R (section 3.4).
        max_tokens: visual tokens that one prompt may hold, theta (section 3.4); None: no limit.
        temperature: of the Gumbel-softmax, tau (section 3.2). Used in training, and in evaluation
            unless `evaluation` is "hard".
        merge_threshold: cosine from which two choices count as one, gamma (section 3.3).
        vision_width: features per CLS or patch token that the vision encoder gives.
        llm_width: hidden size of the language model that reads the tokens.
        qformer_width, qformer_layers, qformer_heads: sizes of the two Q-Formers.
        qformer_ffn_width: of their feed-forward layers; None: 4 x qformer_width.
        cross_attention_frequency: every how many layers the queries read the visual tokens.
        vocab_size: rows of the question's word embedding (bert-base-uncased and "[DEC]").
        vocabulary: the WordPieces they stand for, "[PAD]" first, of a small model that has words
            of its own; None: bert-base-uncased's.
        max_question_tokens: longer questions lose their beginning.
        frame_feature: what stands for a frame in the selection: the tower's CLS token, or the
            mean or maximum over its patches, for towers without one (paper, Table 7).
        time_encoding: add a sinusoidal code of its time to each frame feature (not in the paper;
            without it the selector cannot tell early frames from late ones).
        normalize_cls: layer-norm the frame features before they are read and scored.
        straight_through: in training, one-hot choices whose gradient is that of the soft ones.
        evaluation: "hard" takes the best frame without noise (the limit tau -> 0 of eq. 1);
            "soft" takes the softmax without noise; "sample" draws noise as in training, to
            reproduce the authors' code.
        projection: "mlp" is Linear, GELU, Linear; "linear" is two Linear layers with nothing
            between, as in the authors' code (needs vision_width between the two).

    Raises:
        TypeError, ValueError: naming the field, what came and what was wanted.
    """

    num_frames: int = 32
    tokens_per_frame: int = 32
    max_tokens: int | None = None
    temperature: float = 0.1
    merge_threshold: float = 0.75
    vision_width: int = 1408
    llm_width: int = 3584
    qformer_width: int = 768
    qformer_layers: int = 12
    qformer_heads: int = 12
    qformer_ffn_width: int | None = None
    cross_attention_frequency: int = 2
    vocab_size: int = 30523
    vocabulary: tuple[str, ...] | None = None
    max_question_tokens: int = 256
    frame_feature: FrameFeature = "cls"
    time_encoding: bool = False
    normalize_cls: bool = True
    straight_through: bool = False
    evaluation: Evaluation = "hard"
    projection: Projection = "mlp"

    def __post_init__(self) -> None:
        for name in (
            "num_frames tokens_per_frame vision_width llm_width qformer_width qformer_layers "
            "qformer_heads cross_attention_frequency vocab_size"
        ).split():
            check_count(name, getattr(self, name))
        for name in ("max_tokens", "qformer_ffn_width"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("max_question_tokens", self.max_question_tokens, least=2, most=512)
        _check_number("temperature", self.temperature, most=math.inf)
        _check_number("merge_threshold", self.merge_threshold, most=1.0)
        for name in ("time_encoding", "normalize_cls", "straight_through"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, wanted True or False")
        _check_choice("frame_feature", self.frame_feature, get_args(FrameFeature))
        _check_choice("evaluation", self.evaluation, get_args(Evaluation))
        _check_choice("projection", self.projection, get_args(Projection))
        if self.vocabulary is not None:
            # JSON knows no tuples.
            object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
            _check_vocabulary(self.vocabulary, self.vocab_size)
        if self.qformer_width % self.qformer_heads:
            raise ValueError(
                f"qformer_heads: got {self.qformer_heads}, wanted a divisor of "
                f"qformer_width={self.qformer_width}"
            )
        if self.time_encoding and self.vision_width % 2:
            raise ValueError(
                f"time_encoding: got True with vision_width={self.vision_width}, "
                "wanted an even vision_width (sine and cosine come in pairs)"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BalancedTokenizerConfig:
        """The reverse of `to_dict`; an unknown name is a ValueError, a missing one its default."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"config: got unknown names {unknown}, wanted some of {known}")
        return cls(**values)

    def save(self, file: str | Path) -> None:
        Path(file).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: str | Path) -> BalancedTokenizerConfig:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"config: {file} holds {type(values).__name__}, wanted a JSON object")
        return cls.from_dict(values)


def plan(
    config: BalancedTokenizerConfig,
    num_frames: int | Sequence[int],
    *,
    max_tokens: int | None = None,
) -> int:
    """How many visual tokens a prompt holds at most, before anything is encoded.

    Args:
        num_frames: of its video (an image has 1), or of each of its visual inputs.
        max_tokens: budget in place of the config's.

    Frames chosen twice are merged, so fewer tokens may come out; never more.
    """
    counts = [num_frames] if isinstance(num_frames, int) else list(num_frames)
    for count in counts:
        check_count("num_frames", count)
    most = sum(min(count, config.num_frames) * config.tokens_per_frame for count in counts)
    limit = config.max_tokens if max_tokens is None else check_count("max_tokens", max_tokens)
    return most if limit is None else min(most, limit)


def check_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """`value` if it is an int (no bool) in [least, most], else TypeError or ValueError."""
    wanted = f"an int >= {least}" if most is None else f"an int from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), wanted {wanted}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}: got {value}, wanted {wanted}")
    return value


def _check_number(name: str, value: object, *, most: float) -> None:
    """A real number in (0, most]."""
    wanted = "a finite number > 0" if most == math.inf else f"a number in (0, {most:g}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), wanted {wanted}")
    if not (0 < value <= most and math.isfinite(value)):
        raise ValueError(f"{name}: got {value}, wanted {wanted}")


def _check_vocabulary(words: tuple[str, ...], vocab_size: int) -> None:
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}
    if not special <= set(words) or words[0] != "[PAD]" or len(set(words)) < len(words):
        raise ValueError(
            f"vocabulary: got {list(words[:4])}..., wanted distinct words, [PAD] the first, "
            "[UNK], [CLS] and [SEP] among them"
        )
    if len(words) != vocab_size:
        raise ValueError(f"vocabulary: got {len(words)} words, wanted {vocab_size} as vocab_size")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {list(choices)}")
