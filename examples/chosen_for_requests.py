"""The videos of a chat request, and the request with chosen frames in their place.

It knows nothing of servers: serve_select.py is one around it. A video is a part of a user's message
as vLLM and others take it, {"type": "video_url", "video_url": {"url": ...}}. Each becomes images,
each behind a text of its time, where the video stood.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
from torch import nn

from bvllm_adapters.checks import check_count, check_number
from bvllm_adapters.engines.writers import messages
from bvllm_adapters.selectors.frames_of import select_frames
from bvllm_adapters.video.read import open_source

# What a video of a data: address may say that it is; what it is, its bytes tell.
DATA = re.compile(r"data:(?P<kind>[^,;]*)(;[^,;]*)*?;base64,", re.IGNORECASE)
WAIT = 10.0  # seconds for a video's host to say something
Part = dict[str, Any]
Read = Callable[[threading.Event], bytes | Path]


class Refused(Exception):
    """What is answered in place of an answer, as OpenAI's API has it.

    Args:
        status: of HTTP. code: for programs. param: which part of the request it is about.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kinds = {429: "rate_limit_error", 500: "server_error", 502: "server_error"}
        kind = kinds.get(status, "timeout_error" if status == 504 else "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Stopped(Exception):
    """Nobody waits for it any more."""


@dataclass(frozen=True)
class Choosing:
    """How frames are chosen, and of what.

    Args:
        selector: see `bvllm_adapters.select_frames`. frames: of each video. fps: how many a second
            are looked at. size: longest edge in pixels of what is sent, at most.
        max_seconds: of a video. max_videos: of a request. max_bytes: of a video that is fetched.
        files: folder of videos that file: may name; None: none.
        fetch_from: "https://host" or "http://host:port" of videos that may be fetched.
    """

    selector: str | nn.Module = "coverage"
    frames: int = 32
    fps: float = 1.0
    size: int = 512
    max_seconds: float = 3600.0
    max_videos: int = 4
    max_bytes: int = 2**27
    files: Path | None = None
    fetch_from: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("size", 16), ("max_videos", 0), ("max_bytes", 1)):
            check_count(name, getattr(self, name), least=least)
        for name in ("fps", "max_seconds"):
            check_number(name, getattr(self, name), above=0)


def videos_of(request: Any, how: Choosing) -> list[Read]:
    """How to read each video of a request, in order. Nothing is opened yet.

    Raises:
        Refused: it is no chat request, or a video in it is none that may be read.
    """
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
        raise Refused(400, "not_a_chat", "body: wanted an object with a list of messages")
    found = [
        _reader(part.get("video_url"), f"messages[{i}].content[{j}].video_url", how)
        for i, content in _contents(request)
        for j, part in enumerate(content)
        if _is_video(part)
    ]
    if len(found) > how.max_videos:
        message = f"messages: got {len(found)} videos, wanted {how.max_videos} at most"
        raise Refused(400, "too_many_videos", message, "messages")
    return found


def with_frames(
    request: dict[str, Any], videos: Sequence[Read], how: Choosing, stop: threading.Event
) -> dict[str, Any]:
    """The request with frames in place of its `videos`; it is changed.

    Raises:
        Refused: a video cannot be read, or is too long. Stopped: `stop` was set meanwhile.
    """
    left, question = iter(videos), question_of(request)
    for _, content in _contents(request):
        content[:] = [
            new
            for part in content
            for new in (_frames(next(left), question, how, stop) if _is_video(part) else [part])
        ]
    return request


def question_of(request: dict[str, Any]) -> str:
    """The texts of the user's last message, for selectors that read a question."""
    for message in reversed(request["messages"]):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts = [part.get("text") for part in parts if isinstance(part, dict)]
            return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def _frames(read: Read, question: str, how: Choosing, stop: threading.Event) -> list[Part]:
    def check(*_: int) -> None:
        if stop.is_set():
            raise Stopped

    check()
    video = read(stop)
    try:
        source = open_source(video, fps=how.fps)
        if source.duration > how.max_seconds:
            took = f"{source.duration:.0f} s, wanted {how.max_seconds:.0f} s at most"
            raise Refused(422, "video_too_long", f"video: got one of {took}")
        chosen = select_frames(
            source, question, num_frames=how.frames, selector=how.selector, progress=check
        )
    except ValueError as error:  # of which reading's own are some
        name = str(video) if isinstance(video, Path) else "bytes"
        why = str(error).replace(f"{name}: ", "")  # where it lies is nobody's business
        raise Refused(422, "video_unreadable", f"video: it cannot be read ({why})") from error
    parts: list[Part] = messages(chosen, "", size=how.size)[0]["content"]
    return parts


def _contents(request: dict[str, Any]) -> Iterator[tuple[int, list[Any]]]:
    """Of the messages that are made of parts, which each is and its parts."""
    for i, message in enumerate(request["messages"]):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            yield i, content


def _is_video(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "video_url"


def _reader(given: Any, param: str, how: Choosing) -> Read:
    url = given.get("url") if isinstance(given, dict) else None
    if not isinstance(url, str):
        raise Refused(400, "wrong_type", f"{param}: wanted an object with a url, a string", param)
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return _data(url, param)
    if scheme == "file" and how.files is not None:
        return partial(_below, url, how.files, param)
    if scheme in ("http", "https") and origin_of(url) in how.fetch_from:
        return partial(_fetched, url, how.max_bytes, param)
    wanted = ["its bytes in a data: address"]
    wanted += [] if how.files is None else ["a file: of this server's folder"]
    wanted += [f"one of {origin}" for origin in how.fetch_from]
    message = f"{param}.url: got {url[:80]!r}, wanted {' or '.join(wanted)}"
    raise Refused(400, "video_not_allowed", message, param)


def _data(url: str, param: str) -> Read:
    head = DATA.match(url, endpos=200)
    if head is None:
        message = f"{param}.url: got {url[:40]!r}, wanted data:video/mp4;base64, and the like"
        raise Refused(400, "wrong_data", message, param)
    kind = head["kind"].lower()
    # vLLM's own way to send frames that somebody has chosen already.
    if kind == "video/jpeg" or not (kind.startswith("video/") or kind == "image/gif"):
        message = f"{param}.url: got {kind or 'no media type'!r}, wanted video/mp4 and the like"
        raise Refused(415, "no_video", message, param)

    def read(stop: threading.Event) -> bytes:
        try:
            return base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            message = f"{param}.url: its base64 cannot be read ({error})"
            raise Refused(400, "wrong_data", message, param) from error

    return read


def _below(url: str, folder: Path, param: str, stop: threading.Event) -> Path:
    """A file of the folder, wherever links lead; what else there is on this machine is not told."""
    try:
        split = urlsplit(url)
        root = folder.resolve()
        found = (root / unquote(split.path)).resolve(strict=True)
        if split.netloc in ("", "localhost") and found.is_relative_to(root) and found.is_file():
            return found
    except (OSError, ValueError, RuntimeError):  # it is not there, no name, or a ring of links
        pass
    message = f"{param}.url: got {url[:80]!r}, wanted a file of this server's folder of videos"
    raise Refused(400, "video_not_allowed", message, param)


def origin_of(url: str) -> str | None:
    """Scheme, host and port, as `fetch_from` has them; None if there is something beside them."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return None
    if parsed.userinfo or not parsed.host:
        return None
    host = parsed.raw_host.decode("ascii")
    host = f"[{host}]" if ":" in host else host
    return f"{parsed.scheme}://{host}" + ("" if parsed.port is None else f":{parsed.port}")


def _fetched(url: str, most: int, param: str, stop: threading.Event) -> bytes:
    """As it comes, from where it was allowed: no redirect is followed, no setting of the
    environment (proxies, passwords) used."""

    def failed(why: object) -> Refused:
        return Refused(
            422, "video_not_fetched", f"{param}.url: it cannot be fetched ({why})", param
        )

    found = bytearray()
    try:
        with (
            httpx2.Client(trust_env=False, timeout=WAIT, follow_redirects=False) as client,
            client.stream("GET", url, headers={"accept-encoding": "identity"}) as answer,
        ):
            if answer.status_code != 200:
                raise failed(f"its host answers {answer.status_code}")
            for chunk in answer.iter_raw():
                found += chunk
                if stop.is_set():
                    raise Stopped
                if len(found) > most:
                    message = f"{param}.url: got more than {most} bytes"
                    raise Refused(413, "video_too_large", message, param)
    except httpx2.HTTPError as error:
        raise failed(str(error) or type(error).__name__) from error
    return bytes(found)
