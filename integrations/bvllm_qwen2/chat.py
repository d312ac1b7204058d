"""Qwen2's chat format, with placeholders for images and videos."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bvllm_adapters.question import without

IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<video>"
PLACEHOLDER = re.compile(f"{re.escape(IMAGE_TOKEN)}|{re.escape(VIDEO_TOKEN)}")

# A message's content: a string, or a list of {"type": "video"}, {"type": "image"} and {"type":
# "text", "text": ...}.
RENDER = """\
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
"""

# Renders messages of strings as Qwen2-Instruct's own template does.
CHAT_TEMPLATE = (
    RENDER
    + """\
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
)

_USER_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


def question_of(text: str) -> str | None:
    """What the first user turn of a rendered chat asks, without placeholders; None: no such turn.

    Nothing else is read, so an answer in the text never gets into the question.
    """
    turn = _USER_TURN.search(text)
    return None if turn is None else without_placeholders(turn[1])


def last_question(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """What the last user turn of `as_strings` asks, without placeholders; None: no such turn."""
    asked = [message["content"] for message in messages if message.get("role") == "user"]
    return without_placeholders(asked[-1]) if asked else None


def without_placeholders(text: str) -> str:
    return without(text, (IMAGE_TOKEN, VIDEO_TOKEN)).strip()


def as_strings(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is a string each, with a placeholder for each image and video.

    Raises:
        ValueError: for content that is neither a string nor a list of parts.
    """
    out = []
    for message in conversation:
        content = message.get("content")
        if isinstance(content, list | tuple):
            content = "".join(map(_as_string, content))
        elif not isinstance(content, str):
            raise ValueError(
                f"content: got {type(content).__name__}, wanted a string or a list of parts"
            )
        out.append({**message, "content": content})
    return out


def _as_string(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return without(part["text"], (IMAGE_TOKEN, VIDEO_TOKEN))
    if kind not in ("image", "video"):
        shown = repr(kind) if kind is not None else f"{type(part).__name__} {part!r:.60}"
        raise ValueError(f"content: got a part of type {shown}, wanted text, image or video")
    return f"<{kind}>"


def visuals_of(conversation: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The images and the videos that a conversation's messages hold, in reading order."""
    found: dict[str, list[Any]] = {"image": [], "video": []}
    for message in conversation:
        parts = [] if isinstance(message["content"], str) else message["content"]
        for part in parts:
            kind = part["type"]
            if kind == "text":
                continue
            sources = [part[key] for key in (kind, "path", "url") if key in part]
            if len(sources) != 1:
                raise ValueError(
                    f"content: got a {kind} with the keys {sorted(part)}, "
                    f"wanted one of {kind!r} or 'path' that says which"
                )
            (source,) = sources
            if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
                raise ValueError(
                    f"content: got a {kind} at {source:.60}, wanted a file, as nothing is "
                    "downloaded"
                )
            found[kind].append(source)
    return found
