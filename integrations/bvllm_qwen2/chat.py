"""Qwen2's chat format, with placeholders for images and videos."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bvllm_adapters.question import without

IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<video>"
PLACEHOLDER = re.compile(f"{re.escape(IMAGE_TOKEN)}|{re.escape(VIDEO_TOKEN)}")

# Renders messages of strings as Qwen2-Instruct's own template does; a message's content may also
# be a list of {"type": "video"}, {"type": "image"} and {"type": "text", "text": ...}.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}
                {{- part.text -}}
            {%- else -%}
                {{- '<' ~ part.type ~ '>' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ render(message.content) ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_USER_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


def question_of(text: str) -> str | None:
    """What the first user turn of a rendered chat asks, without placeholders; None: no such turn.

    Nothing else is read, so an answer in the text never gets into the question.
    """
    turn = _USER_TURN.search(text)
    return None if turn is None else without_placeholders(turn[1])


def without_placeholders(text: str) -> str:
    return without(text, (IMAGE_TOKEN, VIDEO_TOKEN)).strip()


def visuals_of(conversation: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The images and the videos that a conversation's messages hold, in reading order."""
    found: dict[str, list[Any]] = {"image": [], "video": []}
    for message in conversation:
        if isinstance(message["content"], str):
            continue
        for part in message["content"]:
            kind = part["type"]
            if kind == "text":
                continue
            if kind not in found:
                raise ValueError(
                    f"content: got a part of type {kind!r}, wanted text, image or video"
                )
            sources = [part[key] for key in (kind, "path") if key in part]
            if len(sources) != 1:
                raise ValueError(
                    f"content: got a {kind} with the keys {sorted(part)}, "
                    f"wanted one of {kind!r} or 'path' that says which"
                )
            found[kind].append(sources[0])
    return found
