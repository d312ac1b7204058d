"""What a BalancedTokenizer is built from: one frozen record, checked when made, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from bvllm_adapters.checks import check_choice, check_count, check_number
from bvllm_adapters.weights.json_file import STAMP, blamed, read_json
from bvllm_adapters.weights.sizes import MOST_PIXELS

FrameFeature = Literal["cls", "mean", "max"]
Evaluation = Literal["hard", "soft", "sample"]
Counting = Literal["fixed", "mass", "gap"]
Projection = Literal["mlp", "linear", "none"]
Sampler = Literal["qformer", "none"]
Selector = Literal[
    "learned", "coverage", "relevance", "uniform", "random",
    "k-center", "top-k", "best-of-bins", "inverse-transform", "custom",
]  # fmt: skip
ScoutLibrary = Literal["timm", "transformers"]

MOST, MOST_LAYERS = 2**24, 1024  # of a size; of layers


@dataclass(frozen=True, kw_only=True)
class ScoutConfig:
    """A cheaper look at each frame, by which frames are chosen; see `bvllm_adapters.scout`.

    Args:
        image_size: to which the tower's pixels are scaled for it.
        width: of its feature of a frame.
        architecture: an image model, by its name in the library; None: the vision tower itself.
        library: "timm", or "transformers", where the name is a model_type.
        model_args: of timm.create_model, or fields of transformers' config. Most transformers need
            their input size there.

    Raises:
        TypeError, ValueError: naming the field, what came and what was wanted.
    """

    image_size: int
    width: int
    architecture: str | None = None
    library: ScoutLibrary = "timm"
    model_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("scout.image_size", self.image_size)
        check_count("scout.image_size", self.image_size, most=MOST_PIXELS)  # maybe a file's
        check_count("scout.width", self.width)
        check_choice("scout.library", self.library, get_args(ScoutLibrary))
        for name, kind, wanted in (
            ("architecture", str | None, "a name or None"),
            ("model_args", Mapping, "names and values"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"scout.{name}: got {getattr(self, name)!r}, wanted {wanted}")
        if self.architecture is None and self.model_args:
            raise ValueError(
                f"scout.model_args: got {dict(self.model_args)}, wanted none without architecture"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoutConfig:
        """From JSON; an unknown or missing name is a ValueError."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"scout: got {dict(values)} ({error})") from error


@dataclass(frozen=True, kw_only=True)
class BalancedTokenizerConfig:
    """Sizes and settings of a `BalancedTokenizer`; the defaults are the paper's.

    Args:
        num_frames: frames the selector may choose from a video, the paper's L* (section 3.2).
            None, of a selector without training: by the rule of the budget, see
            `bvllm_adapters.selectors.split`.
        tokens_per_frame: visual tokens sampled from each chosen frame, R (section 3.4). Without a
            sampler, the most that a frame may keep; None: by the rule of the budget.
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
        selection_support: in training and soft evaluation, each choice mixes this many frames at
            most, those of its highest scores, and only their patches are needed; None: all frames.
        frame_count: "fixed": each of the num_frames queries chooses a frame. "mass", "gap": in hard
            evaluation, as many frames as the scores ask for (see `bvllm_adapters.frame_count`):
            those that hold most of the relevance, or those before its largest drop. Otherwise
            the queries choose still: that is what they are trained by, and a count has no
            gradient. So a tokenizer that was trained with "fixed" can be used with all three.
        min_frames, max_frames: limits of a count that is not fixed; max_frames None: max_tokens,
            a token for each frame.
        frame_mass: the share of the relevance beyond chance that "mass" keeps.
        scout: a smaller encoder that gives the features by which frames are chosen, in place of the
            vision tower, which then sees chosen frames only; None: the tower does.
        projection: "mlp" is Linear, GELU, Linear; "linear" is two Linear layers with nothing
            between, as in the authors' code (needs vision_width between the two); "none" leaves
            tokens as they are.
        selector: what chooses frames: "learned" is the paper's; the others need no training, see
            `bvllm_adapters.selectors`. "relevance" and "custom" stand for a module that was given.
        selector_settings: arguments of a selector without training, by name.
        sampler: "qformer" is the paper's; "none": a chosen frame's own patches or, on hosts that
            project them, its visual tokens.

    Raises:
        TypeError, ValueError: naming the field, what came and what was wanted.
    """

    num_frames: int | None = 32
    tokens_per_frame: int | None = 32
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
    selection_support: int | None = None
    frame_count: Counting = "fixed"
    min_frames: int = 1
    max_frames: int | None = None
    frame_mass: float = 0.9
    scout: ScoutConfig | None = None
    projection: Projection = "mlp"
    selector: Selector = "learned"
    selector_settings: Mapping[str, Any] = field(default_factory=dict)
    sampler: Sampler = "qformer"

    def __post_init__(self) -> None:
        check_choice("selector", self.selector, get_args(Selector))
        check_choice("sampler", self.sampler, get_args(Sampler))
        for name in (
            "num_frames tokens_per_frame vision_width llm_width qformer_width qformer_layers "
            "qformer_heads cross_attention_frequency vocab_size min_frames"
        ).split():
            if getattr(self, name) is None and name in self._by_the_budget():
                continue
            check_count(name, getattr(self, name))
            # A bound on what is made of it, far above what anybody trains: a file may say it.
            check_count(name, getattr(self, name), most=MOST_LAYERS if "layers" in name else MOST)
        for name in ("max_tokens", "qformer_ffn_width", "selection_support", "max_frames"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.qformer_ffn_width is not None:
            check_count("qformer_ffn_width", self.qformer_ffn_width, most=MOST)
        check_count("max_question_tokens", self.max_question_tokens, least=2, most=512)
        check_number("temperature", self.temperature, above=0)
        check_number("merge_threshold", self.merge_threshold, above=0, most=1)
        check_number("frame_mass", self.frame_mass, above=0, most=1)
        for name in ("time_encoding", "normalize_cls", "straight_through"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, wanted True or False")
        check_choice("frame_feature", self.frame_feature, get_args(FrameFeature))
        check_choice("evaluation", self.evaluation, get_args(Evaluation))
        check_choice("frame_count", self.frame_count, get_args(Counting))
        check_choice("projection", self.projection, get_args(Projection))
        if self.frame_count != "fixed" and self.min_frames > self.most_frames:
            name = "max_tokens" if self.max_frames is None else "max_frames"
            raise ValueError(
                f"min_frames: got {self.min_frames}, wanted at most {name}={self.most_frames}"
            )
        if self.vocabulary is not None:
            # JSON knows no tuples.
            object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
            check_vocabulary(self.vocabulary, self.vocab_size)
        if isinstance(self.scout, Mapping):  # from JSON
            object.__setattr__(self, "scout", ScoutConfig.from_dict(self.scout))
        if self.scout is not None:
            _check_scout(self.scout, self.vision_width)
        if self.qformer_width % self.qformer_heads:
            wanted = f"a divisor of qformer_width={self.qformer_width}"
            raise ValueError(f"qformer_heads: got {self.qformer_heads}, wanted {wanted}")
        kept = self.sampler != "none" and self.projection == "none"
        if kept and self.qformer_width != self.llm_width:
            wanted = f"'mlp' or 'linear', of {self.qformer_width} to llm_width={self.llm_width}"
            raise ValueError(f"projection: got 'none' with a sampler, wanted {wanted}")
        if self.time_encoding and self.selection_width % 2:
            name = "vision_width" if self.scout is None else "scout.width"
            raise ValueError(
                f"time_encoding: got True with {name}={self.selection_width}, "
                f"wanted an even {name} (sine and cosine come in pairs)"
            )

    def _by_the_budget(self) -> list[str]:
        """Counts that may be None, for there is a rule for them."""
        frames = [] if self.selector == "learned" else ["num_frames"]
        return frames + ([] if self.sampler == "qformer" else ["tokens_per_frame"])

    @property
    def selection_width(self) -> int:
        """Of the features by which frames are chosen: the scout's, or the vision tower's."""
        return self.vision_width if self.scout is None else self.scout.width

    @property
    def most_frames(self) -> int:
        """That hard evaluation may choose from a video; ValueError: nothing limits the count."""
        most = self.num_frames if self.frame_count == "fixed" else self.max_frames
        if most is None:
            most = self.max_tokens
        if most is None:
            raise ValueError(
                f"max_frames: got None with frame_count={self.frame_count!r}, "
                "wanted an int >= 1, or max_tokens as a limit"
            )
        return most

    def frames_within(self, max_tokens: int | None) -> int:
        """`most_frames` under this budget in place of the config's; None: under that."""
        if self.frame_count != "fixed" and self.max_frames is None and max_tokens is not None:
            return max_tokens
        return self.most_frames

    def with_words_of(self, host: BalancedTokenizerConfig) -> BalancedTokenizerConfig:
        """With the words of a host's checkpoint, where these settings name none of their own and
        have a row for each of those: an adapter of before they were named, or sizes alone."""
        words = host.vocabulary
        if self.vocabulary is not None or words is None or self.vocab_size != len(words):
            return self
        return replace(self, vocabulary=words)

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
        """Of a JSON file; one that cannot be read, or holds no settings, is a CheckpointError."""
        values = read_json(file)
        values.pop(STAMP, None)
        with blamed(file):
            return cls.from_dict(values)


def plan(
    config: BalancedTokenizerConfig,
    num_frames: int | Sequence[int],
    *,
    max_tokens: int | None = None,
    training: bool = False,
    tokens_per_frame: int | None = None,
    all_frames: bool = False,
) -> int:
    """How many visual tokens a prompt holds at most, before anything is encoded.

    Args:
        num_frames: of its video (an image has 1), or of each of its visual inputs.
        max_tokens: budget in place of the config's.
        training: bound training's noisy choices, not those of evaluation.
        tokens_per_frame: in place of the config's, where the spatial sampler is left out or
            replaced: without one, each chosen frame gives all its patches.
        all_frames: whether the frame selector is left out, so that every frame is chosen.

    Frames chosen twice are merged, so fewer tokens may come out; never more.
    """
    counts = [num_frames] if isinstance(num_frames, int) else list(num_frames)
    for count in counts:
        check_count("num_frames", count)
    limit = config.max_tokens if max_tokens is None else check_count("max_tokens", max_tokens)
    hard = config.evaluation == "hard" and not training
    each = config.tokens_per_frame
    if tokens_per_frame is not None:
        each = check_count("tokens_per_frame", tokens_per_frame)
    if each is None:
        raise ValueError(
            "tokens_per_frame: got None, wanted how many tokens the host has of a frame, as "
            "sampler='none'"
        )
    frames = counts if all_frames else [_most_chosen(config, count, hard) for count in counts]
    most = sum(frames) * each
    return most if limit is None else min(most, limit)


def _most_chosen(config: BalancedTokenizerConfig, num_frames: int, hard: bool) -> int:
    """Different choices from a video of so many frames."""
    if num_frames == 1:
        return 1
    if config.num_frames is None:  # as many as the budget has room for
        return num_frames
    if not hard:  # soft choices do not become one: each blends the frames in its own proportions
        return config.num_frames
    if config.frame_count != "fixed" and config.max_frames is None:
        return num_frames  # the scores may ask for all; the budget is applied by the caller
    return min(num_frames, config.most_frames)


def check_vocabulary(words: tuple[str, ...], vocab_size: int) -> None:
    """ValueError unless these are WordPieces, and as many."""
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}
    if not special <= set(words) or words[0] != "[PAD]" or len(set(words)) < len(words):
        raise ValueError(
            f"vocabulary: got {list(words[:4])}..., wanted distinct words, [PAD] the first, "
            "[UNK], [CLS] and [SEP] among them"
        )
    if len(words) != vocab_size:
        raise ValueError(f"vocabulary: got {len(words)} words, wanted {vocab_size} as vocab_size")


def _check_scout(scout: object, vision_width: int) -> None:
    if not isinstance(scout, ScoutConfig):
        raise TypeError(f"scout: got {scout!r}, wanted a ScoutConfig or None")
    if scout.architecture is None and scout.width != vision_width:
        raise ValueError(
            f"scout.width: got {scout.width}, wanted vision_width={vision_width} of the tower"
        )
