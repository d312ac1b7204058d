"""From a prompt with pixels to one whose visual tokens keep the budget.

Axes: T groups of a video (see `splits`), P tokens of a group, D width of the language model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.features import FrameFeatures, PatchReader, VisualTokens
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.selectors.blind import RandomSelector
from bvllm_adapters.selectors.choosing import sees
from bvllm_transformers.arguments import IMAGES_APART, Inputs, check_inputs, pad_of, with_types
from bvllm_transformers.families import Family, family_of
from bvllm_transformers.glimpse import blurred, pictures
from bvllm_transformers.placeholders import Place
from bvllm_transformers.places import holes_of_images, kept_of, places_of_videos
from bvllm_transformers.placing import check_room, placed
from bvllm_transformers.prompt_text import questions_of
from bvllm_transformers.splice import Filled, Positions, spliced
from bvllm_transformers.towers import as_output, encode, encode_images, encoder_arguments

CHUNK = 64  # pictures that a selector sees at a time
# Of features that are not given: forward() would apply it once more.
NEVER_READ = ("video_compression_mask",)


@dataclass(eq=False)
class Seen:
    """One visual input of a prompt, as the BalancedTokenizer takes it.

    Args:
        place: where it stands in the prompt. key: of `mm_encoder_outputs`.
        features: its groups, tokens as a function.
        tail: (t, D (1 + levels)) tokens of no group, and as_tensor, more: see `Encoded`; they are
            known once tokens have been read.
    """

    place: Place
    key: str
    features: FrameFeatures = field(init=False)
    tail: Tensor | None = None
    as_tensor: bool = False
    more: Mapping[str, Any] | None = None


def has_pixels(model: Any, inputs: Inputs) -> bool:
    """Whether a prompt brings visual inputs, which are not encoded yet."""
    pixels = (family_of(model).split.pixels, "pixel_values", IMAGES_APART)
    return any(inputs.get(name) is not None for name in pixels)


def budgeted(model: Any, inputs: Inputs) -> dict[str, Any]:
    """The arguments of forward() or generate() with visual tokens that keep the budget.

    Where all is kept as it is, they are the caller's own.

    Args:
        inputs: the caller's, with input_ids and pixels.

    Raises:
        ValueError: naming the argument, what came and what was wanted.
    """
    check_inputs(inputs)
    family, tokenizer = family_of(model), tokenizer_of(model)
    inputs = {name: value for name, value in inputs.items() if value is not None}
    inputs = with_types(model, family, inputs)
    videos = places_of_videos(model, family, inputs)
    if keeps_all(tokenizer, videos, holes_of_images(model, family, inputs)):
        return dict(inputs)
    seen = [look(model, family, inputs, place) for place in videos]
    seen += images_of(model, family, inputs)
    seen.sort(key=lambda each: (each.place.row, int(each.place.columns[0, 0])))
    filled = fill(tokenizer, seen, questions_of(model, inputs, tokenizer, videos))
    return put_together(model, family, inputs, filled)


def keeps_all(
    tokenizer: BalancedTokenizer, places: Sequence[Place], images: Tensor | None = None
) -> bool:
    """Whether these videos, and images beside them, are within the budget, so that nothing is left
    to choose or to merge.

    Args:
        images: (B, L) bool, the images' placeholders.
    """
    config = tokenizer.config
    if not tokenizer.chooses_untrained or config.sampler != "none":
        return False
    tokens = dict(enumerate([] if images is None else images.sum(dim=1).tolist()))
    for place in places:
        groups, each = place.columns.shape
        if groups > 1 and (config.num_frames or groups) < groups:
            return False
        if groups > 1 and (config.tokens_per_frame or each) < each:
            return False
        tokens[place.row] = tokens.get(place.row, 0) + place.columns.numel() + len(place.tail)
    return config.max_tokens is None or max(tokens.values(), default=0) <= config.max_tokens


def look(model: Any, family: Family, inputs: Inputs, place: Place) -> Seen:
    """One video: by what its groups are chosen, and the tokens of those that will be."""
    tokenizer = tokenizer_of(model)
    groups, each = place.columns.shape
    check_sampled(tokenizer, each)
    seen = Seen(place, family.key)

    def read(indices: Tensor) -> Tensor:
        own = indices[:, None] * place.tiles + torch.arange(place.tiles, device=indices.device)
        encoded = encode(model, family, inputs, place.video, own.flatten())
        inside = len(indices) * each
        if len(encoded.tokens) != inside + family.tail:
            raise ValueError(
                f"{family.split.pixels}: got {len(encoded.tokens)} tokens of {len(indices)} frames "
                f"or groups, wanted {inside + family.tail} as the prompt has placeholders"
            )
        seen.tail, seen.as_tensor = encoded.tokens[inside:], encoded.as_tensor
        seen.more = encoded.more
        return own_width(tokenizer, encoded.tokens[:inside].view(len(indices), each, -1))

    selector: Any = tokenizer.frame_selector
    patches: PatchReader = read
    if groups == 1:
        cls = torch.zeros(1, tokenizer.config.selection_width)  # nothing to choose from
    elif sees(selector):
        cls = glance(model, selector, family, inputs, place)
    else:
        tokens = read(torch.arange(groups))
        cls, patches = tokens[..., : tokenizer.config.llm_width].mean(dim=1), rows_of(tokens)
    device = inputs[family.split.pixels].device
    seen.features = FrameFeatures(
        cls.to(device), patches, patches_per_frame=each, beside=len(place.tail), room=groups * each
    )
    return seen


def own_width(tokenizer: BalancedTokenizer, tokens: Tensor) -> Tensor:
    """(..., D (1 + levels)) -> without further levels where a sampler or a projection makes tokens
    anew, which have none: the language model reads them as it reads words, whose levels are 0."""
    return tokens if tokenizer.keeps_tokens else tokens[..., : tokenizer.config.vision_width]


def check_sampled(tokenizer: BalancedTokenizer, each: int) -> None:
    """ValueError: the sampler makes more tokens of a frame than it has placeholders."""
    if tokenizer.config.sampler != "none" and tokenizer.spatial_sampler is not None:
        check_room(tokenizer.config.tokens_per_frame or 0, each)


def rows_of(tokens: Tensor) -> PatchReader:
    """(T, P, D (1 + levels)) tokens as a function, as which they may be wider than words are."""
    return lambda indices: tokens[indices.to(tokens.device)]


def glance(model: Any, selector: Any, family: Family, inputs: Inputs, place: Place) -> Tensor:
    """(T, C') what a selector sees of each group before any tower."""
    which = (family.split, inputs, place.video, place.num_groups)
    found = pictures(model.config, *which)
    if found is None:
        drawn = isinstance(selector, RandomSelector)  # by the question, whatever it sees
        if getattr(selector, "reads_question", True) and not drawn:
            raise ValueError(
                f"selector: got a {type(selector).__name__}, which reads pictures, wanted one that "
                f"does not: how pixels of a {type(model).__name__} make pictures is not known; "
                "bvllm.ask shows it the video's own"
            )
        found = blurred(*which)
    return torch.cat([selector.see(chunk) for chunk in found.split(CHUNK)])


def images_of(model: Any, family: Family, inputs: Inputs) -> list[Seen]:
    """The images of a batch that stand beside videos, each a video of one frame."""
    holes = holes_of_images(model, family, inputs)
    if holes is None:
        return []
    tokenizer = tokenizer_of(model)
    encoded = encode_images(model, inputs)
    if int(holes.sum()) != len(encoded.tokens):
        raise ValueError(
            f"pixel_values: got {len(encoded.tokens)} tokens of images, wanted {int(holes.sum())} "
            "as the prompts have placeholders"
        )
    columns = holes.nonzero()
    found = []
    parts = zip(encoded.tokens.split(encoded.sizes), columns.split(encoded.sizes), strict=True)
    for i, (tokens, where) in enumerate(parts):
        if not len(tokens):
            continue  # a prompt without images, of a batch of prompts with some
        row, first, last = int(where[0, 0]), int(where[0, 1]), int(where[-1, 1])
        if bool((where[:, 0] != row).any()):
            raise ValueError(f"input_ids: got image {i} in two prompts, wanted whole ones")
        place = Place(
            row, i, where[None, :, 1].cpu(), [], [(first, last + 1)], False, is_video=False
        )
        check_sampled(tokenizer, len(tokens))
        nothing = tokens.new_zeros(1, tokenizer.config.selection_width)  # to choose by
        own = rows_of(own_width(tokenizer, tokens)[None])
        found.append(Seen(place, "image", tokens[:0], encoded.as_tensor, encoded.more))
        found[-1].features = FrameFeatures(nothing, own, patches_per_frame=len(tokens))
    return found


def fill(
    tokenizer: BalancedTokenizer, seen: Sequence[Seen], questions: Sequence[str]
) -> list[Filled]:
    """Tokens for all visual inputs of a batch."""
    rows = [each.place.row for each in seen]
    made = tokenizer(
        [each.features for each in seen], [questions[row] for row in rows], prompts=rows
    )
    return [
        filled_by(
            each.place, each.key, tokens, placed_in(tokens, *each.place.columns.shape),
            tail=each.tail, as_tensor=each.as_tensor, more=each.more,
        )
        for each, tokens in zip(seen, made, strict=True)
    ]  # fmt: skip


def placed_in(made: VisualTokens, groups: int, each: int) -> tuple[Tensor, Tensor]:
    """`placed`, of the tokens of a video of so many groups and placeholders of each."""
    if made.place is None:
        raise ValueError("budget_merger: got tokens without place, wanted one that says theirs")
    return placed(made.frame.cpu(), made.place.cpu(), groups, each)


def filled_by(
    place: Place,
    key: str,
    made: VisualTokens,
    at: tuple[Tensor, Tensor],
    *,
    tail: Tensor | None,
    as_tensor: bool,
    more: Mapping[str, Any] | None = None,
) -> Filled:
    """Tokens in their places, with those of no frame behind them if the budget has room.

    Args:
        at: (N,) groups of `place`, and places in them, where tokens stand.
    """
    tokens, columns = made.tokens, place.columns[at]
    if made.beside and tail is not None:
        tokens = torch.cat([tokens, tail.to(tokens)])
        columns = torch.cat([columns, torch.tensor(place.tail)])
    return Filled(place, key, tokens, columns, as_tensor, more)


def put_together(
    model: Any, family: Family, inputs: Inputs, filled: Sequence[Filled]
) -> dict[str, Any]:
    """The arguments of the compacted prompts, in the shape that the model takes them in."""
    split = family.split
    videos = [each for each in filled if each.place.is_video]
    reduced = {}
    if any(each.place.own_text for each in videos):
        reduced = split.reduced(inputs, kept_of(split, inputs, videos))
    drop = {split.pixels, "pixel_values", *split.beside, *NEVER_READ}
    for call in (family.call, "get_image_features"):
        drop.update(encoder_arguments(model, call))
    rope = getattr(model.base_model, "get_rope_index", None)
    positions = None if rope is None else Positions(rope, reduced, dict(family.rope))
    out = spliced(inputs, filled, drop=sorted(drop), positions=positions, pad_id=pad_of(model))
    embeddings = model.get_input_embeddings()
    width, dtype = embeddings.embedding_dim, embeddings.weight.dtype
    anew = not tokenizer_of(model).keeps_tokens
    outputs: dict[str, Any] = {}
    for key in dict.fromkeys(each.key for each in filled):
        parts = [each for each in filled if each.key == key and len(each.tokens)]
        if parts:
            as_tensor = all(each.as_tensor for each in parts)
            tokens = [part.tokens.to(dtype) for part in parts]
            outputs[key] = as_output(tokens, width, as_tensor, parts[0].more, anew=anew)
    wanted = inspect.signature(model.forward).parameters.values()
    gone = {p.name: None for p in wanted if p.name in drop and p.default is p.empty}
    return {**gone, **out, "mm_encoder_outputs": outputs}
