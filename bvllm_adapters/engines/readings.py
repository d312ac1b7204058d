"""How a family of models reads the frames of a video, and what it makes of their times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Times = Literal["each", "even", "none"]


@dataclass(frozen=True)
class Reading:
    """What the processor of a family does with frames that somebody else has chosen.

    Args:
        times: "each": it writes the time of each frame into the prompt; "even": it knows one step
            between frames for a whole clip; "none": it says nothing of them.
        pairs: whether two successive frames become one, whose time is the mean of theirs.
    """

    times: Times
    pairs: bool


_EACH, _EVEN = Reading("each", pairs=True), Reading("even", pairs=True)
# By the model_type of config.json.
READINGS: dict[str, Reading] = {
    "qwen2_vl": Reading("none", pairs=True),
    "qwen2_5_vl": _EVEN,
    "qwen3_vl": _EACH,
    "qwen3_vl_moe": _EACH,  # this and the next two have the processor of qwen3_vl
    "qwen3_5": _EACH,
    "qwen3_5_moe": _EACH,
    "internvl": Reading("none", pairs=False),
    "llava_onevision": Reading("none", pairs=False),
}


def reading_of(model: str) -> Reading:
    """That of a model_type.

    Raises:
        ValueError: it is not known how models of this type read times.
    """
    found = READINGS.get(model) if isinstance(model, str) else None
    if found is None:
        raise ValueError(
            f"model: got {model!r}, wanted the model_type of one whose reading of times is known, "
            f"{sorted(READINGS)}; to any other frames can go as images, see "
            "bvllm_adapters.selectors.export.messages"
        )
    return found
