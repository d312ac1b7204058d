"""What a file of settings says of sizes, held against the weights before anything is made.

A billion layers of a few bytes' JSON would take hours and all memory, though no weights are there
to fill them. And which implementations a file may ask for: those that transformers itself ships, as
it looks for any other name on the hub, and runs what it finds.
"""

from __future__ import annotations

import math
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
    "num_hidden_layers qformer_layers num_layers n_layer depth depths layers "
    "num_local_experts num_experts".split()
)
# Each shows in a tensor's shape.
_WIDTHS = frozenset(
    "hidden_size intermediate_size vocab_size embed_dim encoder_width "
    "mm_hidden_size vision_width llm_width qformer_width qformer_ffn_width num_frames "
    "tokens_per_frame num_query num_attention_heads num_key_value_heads qformer_heads num_heads "
    "head_dim width widths dim dims embed_dims embedding_size hidden_sizes".split()
)
_PIXELS = frozenset("image_size img_size patch_size".split())
_LAYER_TYPES = ("full_attention", "sliding_attention")
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
        if name == "is_encoder_decoder" and value not in (False, None):
            raise CheckpointError(f"{file}: {name}: got {value!r}, wanted a decoder")
        known = shapes is None or value in _LAYER_TYPES  # before it is known whose they are, any
        if name == "layer_types" and isinstance(value, str) and not known:
            raise CheckpointError(f"{file}: {name}: got {value!r}, wanted some of {_LAYER_TYPES}")
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        most = MOST_NUMBER
        if name in _LAYERS:
            most = most_layers
        elif name in _WIDTHS:
            most = most_width
        elif name in _PIXELS:
            most = MOST_PIXELS
        if abs(value) > most or (value < 0 and name in _LAYERS | _WIDTHS | _PIXELS):
            shown = value if abs(value) < 10**30 else "a number of more than 30 digits"
            raise CheckpointError(
                f"{file}: {name}: got {shown}, wanted 0 to {most}"
                + (", as the weights have" if most in (most_layers, most_width) else "")
            )


def check_layers(file: Path, values: Mapping[str, Any], tensors: int) -> None:
    """CheckpointError for more layers, or experts, than there are tensors: each needs one.

    Widths cost nothing while a model is made without weights, and then do not fit them.
    """
    for name, value in _entries(values):
        counts = name in _LAYERS and isinstance(value, int) and not isinstance(value, bool)
        if counts and not 0 <= value <= tensors:
            raise CheckpointError(
                f"{file}: {name}: got {value}, wanted 0 to {tensors}, as there are tensors"
            )


def check_kinds(file: Path, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """CheckpointError for a number, a truth or a text where the default is another of the three.

    Libraries take one for the other without a word: true is 1, and any text is true.
    """
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(default, Mapping) and isinstance(value, Mapping):
            check_kinds(file, value, default)
        kind, wanted = _kind(value), _kind(default)
        if None not in (value, default) and wanted is not None and kind != wanted:
            raise CheckpointError(f"{file}: {name}: got {value!r}, wanted a {wanted}")
        if kind == "number" and not math.isfinite(value):
            raise CheckpointError(f"{file}: {name}: got {value!r}, wanted a finite number")


def check_present(file: Path, values: object, names: str, of: str = "") -> None:
    """CheckpointError for settings that a model always says, that no weight's shape tells, and that
    would be a default's where they are missing.

    Args:
        names: with spaces between. of: the object in the file that has them, for the message.
    """
    said = values if isinstance(values, Mapping) else {}
    missing = [f"{of}{name}" for name in names.split() if said.get(name) is None]
    if missing:
        raise CheckpointError(f"{file}: got no {', '.join(missing)}, wanted the model's")


def _kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else None


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
        elif isinstance(value, list | tuple):
            yield from ((str(name), part) for part in value)
