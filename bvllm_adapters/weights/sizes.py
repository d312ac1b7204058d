"""What a file of settings says of sizes, held against the weights before anything is made.

A billion layers of a few bytes' JSON would take hours and all memory, though no weights are there
to fill them. And which implementations a file may ask for: those that transformers itself ships, as
it looks for any other name on the hub, and runs what it finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bvllm_adapters.weights.json_file import CheckpointError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

MOST_PIXELS = 4096  # of a side of an image
MOST_NUMBER = 2**40  # of any kind
# Each needs a tensor at least.
_LAYERS = frozenset(
    "num_hidden_layers qformer_layers num_layers n_layer depth "
    "num_local_experts num_experts".split()
)
# Each shows in a tensor's shape.
_WIDTHS = frozenset(
    "hidden_size intermediate_size vocab_size embed_dim encoder_width "
    "mm_hidden_size vision_width llm_width qformer_width qformer_ffn_width num_frames "
    "tokens_per_frame num_query num_attention_heads num_key_value_heads qformer_heads num_heads "
    "head_dim width max_question_tokens".split()
)
_PIXELS = frozenset("image_size img_size patch_size".split())
_IMPLEMENTATIONS = frozenset(
    "eager sdpa flash_attention_2 flash_attention_3 flex_attention grouped_mm batched_mm".split()
)


def check_settings(file: Path, values: Mapping[str, Any], shapes: Shapes | None = None) -> None:
    """CheckpointError for sizes that no weights are there for, and implementations from elsewhere.

    Args:
        file: where `values` stand, for messages.
        shapes: of the weights that a model of these settings is filled with; None: not known yet.
    """
    most_layers = most_width = MOST_NUMBER
    if shapes is not None:
        most_layers = len(shapes)
        most_width = max((max(shape, default=1) for shape in shapes.values()), default=1)
    for name, value in _entries(values):
        if name.endswith(("attn_implementation", "experts_implementation")):
            _check_implementation(file, name, value)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        most = MOST_NUMBER
        if name in _LAYERS:
            most = most_layers
        elif name in _WIDTHS:
            most = most_width
        elif name in _PIXELS:
            most = MOST_PIXELS
        if abs(value) > most:
            shown = value if abs(value) < 10**30 else "a number of more than 30 digits"
            raise CheckpointError(
                f"{file}: {name}: got {shown}, wanted {most} at most"
                + (", as the weights have" if most in (most_layers, most_width) else "")
            )


def _check_implementation(file: Path, name: str, value: Any) -> None:
    wanted = value.values() if isinstance(value, Mapping) else [value]
    if any(not (each is None or _is_shipped(each)) for each in wanted):
        raise CheckpointError(
            f"{file}: {name}: got {value!r}, wanted one of {sorted(_IMPLEMENTATIONS)}"
        )


def _is_shipped(name: Any) -> bool:
    return isinstance(name, str) and name in _IMPLEMENTATIONS


def _entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every name and value, those of nested objects too."""
    for name, value in values.items():
        yield str(name), value
        if isinstance(value, Mapping):
            yield from _entries(value)
