"""What a vLLM server (0.33 and its main branch of November 2026) does with the media of a request,
as its source has it: vLLM itself does not install beside the versions that are tested here.

Only what matters to the writers of `bvllm_adapters.engines` is here: what is refused, what is
dropped in silence, what is taken for granted, and what is handed to the model's processor.
"""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image

Request = dict[str, Any]
FIELDS = {  # what each kind of part holds, beside its type
    "text": "text",
    "image_url": "image_url",
    "video_url": "video_url",
    "image_embeds": "image_embeds",
    "prompt_embeds": "data",
}
METADATA = {
    "total_num_frames", "fps", "duration", "frames_indices", "video_backend", "do_sample_frames"
}  # fmt: skip
MOST_PARTS = 999  # of a kind
MOST_BYTES = 715_827_880  # of the pictures of a request, at 4 a pixel


class Refused(ValueError):
    """Answered with 400."""


def check(right: bool, what: str) -> None:
    if not right:
        raise Refused(what)


def check_chat(request: Request) -> None:
    """As every request to /v1/chat/completions is checked."""
    turns = request.get("messages")
    check(isinstance(turns, list) and bool(turns), "messages")
    check("mm_processor_kwargs" not in request, "these need --trust-request-mm-kwargs")
    counts: Counter[str] = Counter()
    taken = 0
    for turn in turns:
        check(turn.get("role") in ("system", "user", "assistant", "tool"), "role")
        content = turn["content"]
        for part in [] if isinstance(content, str) else content:
            kind = part["type"]
            check(kind in FIELDS and set(part) == {"type", FIELDS[kind]}, f"part: {part!s:.80}")
            held = part[FIELDS[kind]]
            if kind.endswith("_url"):
                check(set(held) <= {"url", "detail"}, f"part: {part!s:.80}")
                held = held["url"]
            check(isinstance(held, str), f"part: {part!s:.80}")
            counts[kind] += kind != "text"
            if kind == "image_url":
                image = _image(held.removeprefix("data:image/jpeg;base64,"))
                taken += 4 * image.width * image.height
    for kind, count in counts.items():
        check(count <= MOST_PARTS, f"{count} of {kind}, at most {MOST_PARTS}")
    check(taken <= MOST_BYTES, f"{taken} bytes of images")


def offline(frames: Any, metadata: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What `multi_modal_data={"video": (frames, metadata)}` must be, and is handed on as."""
    check(frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3, "frames")
    check(set(metadata) == METADATA, f"metadata: {sorted(metadata)}")
    check_times(len(frames), metadata)
    check(metadata["do_sample_frames"] is False, "it would sample them anew")
    return frames, metadata


def check_times(count: int, metadata: dict[str, Any]) -> None:
    indices, total = metadata["frames_indices"], metadata["total_num_frames"]
    check(isinstance(indices, list) and all(type(i) is int for i in indices), "frames_indices")
    check(len(indices) == count, f"frames_indices: {len(indices)} for {count} frames")
    check(type(total) is int and total >= count, "total_num_frames")
    check(math.isfinite(metadata["fps"]) and metadata["fps"] > 0, "fps")
    duration = metadata["duration"]
    check(isinstance(duration, int | float) and 0 <= duration < math.inf, "duration")


def parts_of(request: Request, kind: str) -> list[Any]:
    """Parts of one type in a request's messages, in order."""
    contents = [message["content"] for message in request["messages"]]
    return [p for parts in contents if isinstance(parts, list) for p in parts if p["type"] == kind]


def video_of(
    request: Request, *, trusted: bool = True, own: dict[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """The frames and metadata that a request's one video reaches the model's processor with.

    Args:
        trusted: whether it was started with --trust-request-mm-kwargs.
        own: what it was started with as --media-io-kwargs '{"video": ...}'.
    """
    asked = request.get("media_io_kwargs", {})
    check(trusted or not asked, "media_io_kwargs need --trust-request-mm-kwargs")
    told = {**(own or {}), **asked.get("video", {})}
    if "fps" in asked.get("video", {}) and "num_frames" not in asked["video"]:
        told.pop("num_frames", None)
    (part,) = parts_of(request, "video_url")
    head, _, data = part["video_url"]["url"].partition(",")
    check(head == "data:video/jpeg;base64", "media type")
    most = told.get("num_frames", 32)
    check(most != 0, "num_frames")
    pictures = data.split(",") if most < 0 else data.split(",", most)[:most]
    images = [np.asarray(_image(each)) for each in pictures]
    check(len({image.shape for image in images}) == 1, "frames of one size")
    frames = np.stack(images)
    check(4 * frames.size // 3 <= MOST_BYTES, f"{4 * frames.size // 3} bytes of frames")
    total = told.get("total_num_frames", len(frames))
    fps = float(told.get("fps", 1))
    metadata = {
        "total_num_frames": total,
        "fps": fps,
        "duration": told.get("duration", total / fps),
        "frames_indices": told.get("frames_indices", list(range(len(frames)))),
        "video_backend": "jpeg_sequence",
        "do_sample_frames": told.get("do_sample_frames", False),
    }
    check_times(len(frames), metadata)
    return frames, metadata


def embeds_of(data: str, width: int) -> torch.Tensor:
    """(N, width) prompt embeddings, as they are read from base64."""
    tensor = torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True)
    check(isinstance(tensor, torch.Tensor) and tensor.is_floating_point(), "a float tensor")
    tensor = tensor.squeeze(0) if tensor.dim() > 2 else tensor
    check(tensor.device.type == "cpu" and len(tensor) > 0, "rows, on the CPU")
    check(tensor.dim() == 2 and tensor.shape[1] == width, f"(N, {width}): {tuple(tensor.shape)}")
    return tensor


def _image(data: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    return image.convert("RGB")


@contextmanager
def serving(answer: Callable[[str, Request], Any]) -> Iterator[Callable[[str, Request], Any]]:
    """A server on this machine; gives what posts a request to a path and returns the answer, or
    raises Refused with its words.

    Args:
        answer: called with the path and the request that came, as JSON; Refused becomes a 400.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                request = json.loads(body)
                if self.path == "/v1/chat/completions":
                    check_chat(request)
                said, code = json.dumps(answer(self.path, request)), 200
            except Refused as error:
                said, code = json.dumps(str(error)), 400
            self.send_response(code)
            self.send_header("Content-Length", str(len(said.encode())))
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, *words: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{running.server_address[1]}"

    def post(path: str, request: Request) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(address + path, json.dumps(request).encode(), timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise Refused(json.load(error)) from error

    try:
        yield post
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
