"""What a model says of videos that it has seen: chosen tokens, in prompts of its own format.

Axes: T groups of a video (see `splits`), P tokens of a group, N visual tokens, L ids of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bvllm_adapters.features import VisualTokens
from bvllm_adapters.hosts.generation import Replies, settled
from bvllm_adapters.weights.device import device_of
from bvllm_transformers.budget import filled_by, placed_in, put_together
from bvllm_transformers.conversation_prompts import prompt_inputs
from bvllm_transformers.families import Family, family_of
from bvllm_transformers.layout import Layout, frames_per_look
from bvllm_transformers.new_ids import seeing_new_ids
from bvllm_transformers.placeholders import Place
from bvllm_transformers.places import places_of_videos
from bvllm_transformers.splits import Grid
from bvllm_transformers.towers import encode_images, on_device


def answers(
    model: Any,
    processor: Any,
    questions: Sequence[str],
    tokens: Sequence[VisualTokens],
    history: Sequence[Sequence[tuple[str, str]]] | None,
    system: str | None,
    generate: dict[str, Any],
) -> Replies:
    """See `bvllm_adapters.hosts.Host.answers`."""
    family = family_of(model)
    prompts = []
    for i, (question, visual) in enumerate(zip(questions, tokens, strict=True)):
        earlier = () if history is None else history[i]
        prompts.append(_prompt(model, family, processor, question, visual, earlier, system))
    batch = batched(prompts)
    length = batch["input_ids"].shape[1]
    settings = settled(
        model.generation_config, generate, prompt_length=length, tokenizer=processor.tokenizer
    )
    out = model.generate(**batch, **seeing_new_ids(settings, length))
    if isinstance(out, Tensor):
        out = out[:, length:]
    else:
        out.sequences = out.sequences[:, length:]
    return Replies.of(out, partial(processor.tokenizer.batch_decode, skip_special_tokens=True))


def tokens_of_one(model: Any, processor: Any, height: int, width: int) -> int:
    """P of a frame of this size, as the processor makes room for it in a prompt."""
    family = family_of(model)
    layout, frames = Layout(height, width, 0), frames_per_look(family, processor)
    inputs = prompt_inputs(processor, layout, torch.zeros(1), "", frames_per_look=frames)
    return places_of_videos(model, family, inputs)[0].columns.shape[1]


def _prompt(
    model: Any,
    family: Family,
    processor: Any,
    question: str,
    visual: VisualTokens,
    history: Sequence[tuple[str, str]],
    system: str | None,
) -> dict[str, Any]:
    """The arguments of one prompt, of which the visual tokens are given."""
    layout, groups = visual.layout, len(visual.seconds)
    shown = torch.arange(groups)
    if not layout.is_image:
        frame, inside = placed_in(visual, groups, layout.patches_per_frame)
        # Where only its place among all groups says when one is shown, all of them stand there.
        if not hasattr(model.base_model, "get_rope_index") or _has_words(model, processor):
            shown = frame.unique()
    inputs = prompt_inputs(
        processor, layout, visual.seconds.cpu()[shown], question,
        frames_per_look=frames_per_look(family, processor), history=history, system=system,
    )  # fmt: skip
    inputs = on_device(inputs, device_of(model.get_input_embeddings()))
    if layout.is_image:
        place, key, as_tensor = _place_of_image(model, inputs), "image", _as_tensor(model, inputs)
        at = placed_in(visual, *place.columns.shape)
    else:
        (place,) = places_of_videos(model, family, inputs)
        key, as_tensor = family.key, not isinstance(family.split, Grid)
        at = torch.searchsorted(shown, frame), inside  # counted among the groups that are shown
    filled = filled_by(place, key, visual, at, tail=tail_of(model, family), as_tensor=as_tensor)
    return put_together(model, family, inputs, [filled])


def _place_of_image(model: Any, inputs: dict[str, Any]) -> Place:
    """Where the one image of a prompt stands."""
    columns = (inputs["input_ids"][0].cpu() == model.config.image_token_id).nonzero().T
    span = int(columns[0, 0]), int(columns[0, -1]) + 1
    return Place(0, 0, columns, [], [span], False, is_video=False)


_tensors: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _as_tensor(model: Any, inputs: dict[str, Any]) -> bool:
    """Whether the model's images come as one tensor; looked at once, as only a look tells."""
    if model not in _tensors:
        _tensors[model] = encode_images(model, inputs).as_tensor
    return _tensors[model]


def batched(prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Arguments of one prompt each -> those of a batch, padded on the left."""
    if len(prompts) == 1:
        return dict(prompts[0])
    width = max(prompt["input_ids"].shape[1] for prompt in prompts)
    out: dict[str, Any] = {}
    for prompt in prompts:
        prompt.setdefault("attention_mask", torch.ones_like(prompt["input_ids"]))
    for name in dict.fromkeys(chain(*prompts)):
        values = [(prompt, prompt[name]) for prompt in prompts if name in prompt]
        if name == "mm_encoder_outputs":
            made = [value for _, value in values]
            keys = dict.fromkeys(chain(*made))  # of videos, of images
            out[name] = {key: _joined([one[key] for one in made if key in one]) for key in keys}
        elif any(value.shape[-1] != prompt["input_ids"].shape[1] for prompt, value in values):
            out[name] = torch.cat([value for _, value in values])  # of each visual input
        else:
            padded = [torch.nn.functional.pad(v, (width - v.shape[-1], 0)) for _, v in values]
            out[name] = torch.cat(padded, dim=padded[0].dim() - 2)
    return out


def _joined(outputs: Sequence[Any]) -> Any:
    """The visual tokens of several prompts as those of a batch."""
    made = outputs[0]
    parts = [output.pooler_output for output in outputs]
    made.pooler_output = torch.cat(parts) if isinstance(parts[0], Tensor) else [*chain(*parts)]
    if getattr(made, "deepstack_features", None):
        levels = zip(*(output.deepstack_features for output in outputs), strict=True)
        made.deepstack_features = [[*chain(*level)] for level in levels]
    return made


def _has_words(model: Any, processor: Any) -> bool:
    """Whether a prompt has words of its own, such as its time, for each group."""
    family = family_of(model)
    frames = frames_per_look(family, processor)
    layout = Layout(64, 64, 0)
    inputs = prompt_inputs(processor, layout, torch.arange(2), "", frames_per_look=frames)
    return places_of_videos(model, family, inputs)[0].own_text


def tail_of(model: Any, family: Family) -> Tensor:
    """(t, D) tokens of no frame, which stand behind each video."""
    if not family.tail:
        return torch.zeros(0, model.get_input_embeddings().embedding_dim)
    tail: Tensor = getattr(model.base_model, family.tail_from)
    return tail[None]
