"""Chosen frames as others take them: JPEG files with a list of times, or the messages of a chat."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bvllm_adapters.checks import check_count
from bvllm_adapters.selectors.frames_of import ChosenFrames
from bvllm_adapters.video.frames import Frames
from bvllm_adapters.weights.whole import SAVED, SAVING, aside, saved_whole

LIST_FILE = "frames.json"
QUALITY = 90  # of JPEG
MESSAGE_SIZE = 512  # pixels of the longest edge, as many models look at images
_UNFINISHED = (SAVED, SAVING)  # what a save that was interrupted left
_OURS = re.compile(r"frame_\d{4,}\.jpg")


def save_frames(
    chosen: ChosenFrames,
    folder: str | Path,
    *,
    question: str = "",
    size: int | None = None,
    replace: bool = False,
) -> list[str]:
    """Write each frame as a JPEG file, and frames.json, which lists them with their times and
    scores; all of them or, whatever happens, none.

    Args:
        size: longest edge in pixels at most; None: as they are.
        replace: into a folder that holds something: what was saved there before goes, other files
            stay.

    Returns:
        The names of the JPEG files, in time order.

    Raises:
        ValueError: the folder holds something, or is a file.
    """
    folder = Path(folder)
    check_free(folder, replace=replace)
    names = [f"frame_{i:04d}.jpg" for i in range(1, len(chosen.frames) + 1)]
    with saved_whole(folder) as new:
        for name, frame in zip(names, chosen.frames, strict=True):
            (new / name).write_bytes(jpeg(frame, size))
        text = json.dumps(listing(chosen, names, question), indent=2)
        (new / LIST_FILE).write_text(text + "\n", encoding="utf-8")
    for old in folder.iterdir():
        if _OURS.fullmatch(old.name) and old.name not in names:
            old.unlink(missing_ok=True)
    return names


def check_free(folder: Path, *, replace: bool) -> None:
    """ValueError unless frames may be saved into a folder, which need not be there."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: got {folder}, which is a file, wanted a folder")
    if replace or not folder.is_dir():
        return
    if not all(file.name.startswith(_UNFINISHED) for file in folder.iterdir()):
        raise ValueError(
            f"folder: got {folder}, which holds files, wanted a new or empty one "
            "(or replace=True, --force)"
        )


def listing(chosen: ChosenFrames, names: Sequence[str], question: str) -> dict[str, Any]:
    """What frames.json says of each frame, and of the video that they are from."""
    scores: Sequence[Any] = [None] * len(names) if chosen.scores is None else chosen.scores.tolist()
    return {
        "video": chosen.source,
        "question": question,
        "duration": chosen.duration,
        "note": chosen.selection.note,
        "frames": [
            {"file": name, "seconds": seconds, "index": index, "score": score}
            for name, seconds, index, score in zip(
                names, chosen.seconds.tolist(), chosen.index.tolist(), scores, strict=True
            )
        ],
    }


def messages(
    chosen: ChosenFrames, question: str, *, size: int | None = MESSAGE_SIZE
) -> list[dict[str, Any]]:
    """One message of a user, in the format of OpenAI's chat completions, which servers of other
    models take too: each frame as a base64 JPEG image, all of one size, behind a text that says its
    time; the question last.

    Args:
        question: left out if empty. size: longest edge in pixels at most; None: as they are.
    """
    content: list[dict[str, Any]] = []
    for time, frame in zip(times(chosen.seconds.tolist()), chosen.frames, strict=True):
        data = base64.b64encode(jpeg(frame, size)).decode("ascii")
        if not chosen.is_image:
            content.append({"type": "text", "text": f"{time} seconds:"})
        url = f"data:image/jpeg;base64,{data}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    if question.strip():
        content.append({"type": "text", "text": question})
    return [{"role": "user", "content": content}]


def save_messages(found: list[dict[str, Any]], file: str | Path) -> None:
    """As JSON, over what the file held before; whole or not at all."""
    with aside(Path(file)) as new:
        new.write_text(json.dumps(found), encoding="utf-8")


def times(seconds: Sequence[float]) -> list[str]:
    """Each with as few digits behind the point, but one, as tell different ones apart."""
    if not all(map(math.isfinite, seconds)):
        raise ValueError(f"seconds: got {list(seconds)!s:.80}, wanted finite times")
    for digits in range(1, 6):
        found = [f"{second:.{digits}f}" for second in seconds]
        if len(set(found)) == len(set(seconds)):
            break
    return found


def jpeg(frame: Frames, size: int | None) -> bytes:
    """(H, W, 3) -> a JPEG file, its longest edge `size` pixels if it was more."""
    image = Image.fromarray(frame)
    if size is not None:
        check_count("size", size, least=16)
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
