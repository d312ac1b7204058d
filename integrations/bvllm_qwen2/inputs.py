"""A model's visual inputs, checked and taken apart: one record for each placeholder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class VisualTensors:
    """The visual inputs of a batch as forward() gets them; see there for axes.

    Args: see `BvllmQwen2ForConditionalGeneration.forward`.
    """

    pixel_values: Tensor | None = None
    frame_counts: Tensor | None = None
    seconds: Tensor | None = None
    question_ids: Tensor | None = None
    question_mask: Tensor | None = None
    question_text: Tensor | None = None

    def apart(
        self, is_image: Sequence[bool], image_size: int, asked: Sequence[str | None] = ()
    ) -> list[VisualInput]:
        """The input of each placeholder; `is_image` says, in reading order, what it stands for.

        Args:
            asked: the question to each, if it is said otherwise; None: as the tensors have it.

        Raises:
            ValueError: naming the argument, what came and what was wanted.
        """
        if not is_image:
            _check_nothing(self.pixel_values, self.frame_counts)
            return []
        counts = _counts(self.frame_counts, is_image)
        pixels = _pixels(self.pixel_values, sum(counts), image_size)
        times = _times(self.seconds, counts)
        questions: list[str | Tensor] = [text for text in asked if text is not None]
        if len(questions) < len(is_image):
            questions = self._questions(len(is_image))
        return [
            VisualInput(*parts)
            for parts in zip(pixels.split(counts), times, questions, strict=True)
        ]

    def _questions(self, count: int) -> list[str | Tensor]:
        ids = _question_ids(self.question_ids, self.question_mask, count)
        return list(ids) if self.question_text is None else texts_of(self.question_text, count)


@dataclass(frozen=True, eq=False)
class VisualInput:
    """One video or image: (T, 3, S, S) pixels, (T,) seconds, its question or (L,) ids of that."""

    pixels: Tensor
    seconds: Tensor
    question: str | Tensor


def as_tensor(texts: Sequence[str]) -> Tensor:
    """Texts as (V, Lt) uint8, UTF-8 with zeros behind it, which goes wherever tensors go."""
    coded = [torch.tensor([*text.encode(), 0], dtype=torch.uint8) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(coded, batch_first=True)


def texts_of(coded: Tensor, count: int) -> list[str | Tensor]:
    """What `as_tensor` was given."""
    if coded.dtype != torch.uint8 or coded.dim() != 2 or len(coded) != count:
        raise ValueError(
            f"question_text: got {coded.dtype} {tuple(coded.shape)}, "
            f"wanted torch.uint8 ({count}, Lt), UTF-8 with zeros behind it"
        )
    try:
        return [bytes(row).rstrip(b"\0").decode() for row in coded.tolist()]
    except UnicodeDecodeError as error:
        raise ValueError(f"question_text: got {error}, wanted UTF-8") from error


def _times(seconds: Tensor | None, counts: list[int]) -> list[Tensor]:
    if seconds is None:
        return [torch.arange(frames, dtype=torch.float64) for frames in counts]
    if tuple(seconds.shape) != (sum(counts),):
        wanted = f"({sum(counts)},), one for each frame"
        raise ValueError(f"seconds: got shape {tuple(seconds.shape)}, wanted {wanted}")
    return list(seconds.split(counts))


def _check_nothing(pixel_values: Tensor | None, frame_counts: Tensor | None) -> None:
    for name, value in (("pixel_values", pixel_values), ("frame_counts", frame_counts)):
        if value is not None and len(value):
            raise ValueError(
                f"{name}: got {len(value)}, wanted none, as input_ids hold no placeholder"
            )


def _counts(frame_counts: Tensor | None, is_image: Sequence[bool]) -> list[int]:
    wanted = f"an integer tensor ({len(is_image)},), one for each placeholder in input_ids"
    if frame_counts is None:
        raise ValueError(f"frame_counts: got None, wanted {wanted}")
    if frame_counts.is_floating_point() or tuple(frame_counts.shape) != (len(is_image),):
        raise ValueError(
            f"frame_counts: got {frame_counts.dtype} {tuple(frame_counts.shape)}, wanted {wanted}"
        )
    counts: list[int] = frame_counts.tolist()
    for i, (frames, image) in enumerate(zip(counts, is_image, strict=True)):
        if frames < 1 or (image and frames != 1):
            what = "1 for an image" if image else "at least 1"
            raise ValueError(f"frame_counts[{i}]: got {frames}, wanted {what}")
    return counts


def _pixels(pixel_values: Tensor | None, frames: int, size: int) -> Tensor:
    wanted = f"a float tensor ({frames}, 3, {size}, {size})"
    if pixel_values is None:
        raise ValueError(f"pixel_values: got None, wanted {wanted}")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values: got {pixel_values.dtype}, wanted {wanted} from the image processor"
        )
    if tuple(pixel_values.shape) != (frames, 3, size, size):
        raise ValueError(
            f"pixel_values: got shape {tuple(pixel_values.shape)}, wanted {wanted}, "
            "with as many frames as frame_counts sum to"
        )
    if not bool(torch.isfinite(pixel_values).all()):
        raise ValueError("pixel_values: got NaN or inf, wanted finite numbers")
    return pixel_values


def _question_ids(ids: Tensor | None, mask: Tensor | None, count: int) -> list[Tensor]:
    if ids is None:
        raise ValueError(
            f"question_ids: got None, wanted int64 WordPiece ids ({count}, L) of the question to "
            "each visual input; the processor makes them, an empty question is [CLS] [SEP]"
        )
    if ids.dtype != torch.int64 or ids.dim() != 2 or len(ids) != count:
        raise ValueError(
            f"question_ids: got {ids.dtype} {tuple(ids.shape)}, wanted torch.int64 ({count}, L)"
        )
    if mask is None:
        return list(ids)
    if mask.shape != ids.shape:
        raise ValueError(
            f"question_mask: got shape {tuple(mask.shape)}, "
            f"wanted {tuple(ids.shape)} as question_ids"
        )
    return [row[keep] for row, keep in zip(ids, mask.bool(), strict=True)]
