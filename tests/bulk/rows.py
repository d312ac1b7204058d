"""Tables for tests: many small videos, and rows that are bad in many ways."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from media import write_damaged, write_sound, write_video
from tqdm import TMonitor

FRAMES, FPS = 6, 2
QUESTIONS = ("Who?", "What is in the picture?", "Where?", "And then?")


def timeless(rows: Any) -> list[dict[str, Any]]:
    """Rows without what differs from run to run."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def threads() -> list[threading.Thread]:
    """Those that run beside the main one, but for that of progress bars, which stays."""
    found = [one for one in threading.enumerate() if not isinstance(one, TMonitor)]
    return [one for one in found if one is not threading.main_thread()]


def videos(folder: Path, count: int, *, each: int = 1) -> list[dict[str, Any]]:
    """So many small videos of different lengths, and rows with so many questions about each."""
    kinds = [
        write_video(folder / f"kind{i}.mp4", frames=FRAMES + i, fps=FPS, size=(64, 48)).read_bytes()
        for i in range(3)
    ]
    rows = []
    for number in range(count):
        (folder / f"{number}.mp4").write_bytes(kinds[number % 3])
        for i in range(each):
            question = QUESTIONS[(number + i) % len(QUESTIONS)]
            row = {"id": f"v{number}-{i}", "video": f"{number}.mp4", "question": question}
            rows.append({**row, "kind": number % 3})
    for file in folder.glob("kind*.mp4"):
        file.unlink()
    return rows


def bad(folder: Path) -> list[tuple[dict[str, Any], str]]:
    """Rows that cannot be asked, each of a kind of its own, with a word of what is said of it."""
    clip = write_video(folder / "clip.mp4", fps=FPS, size=(64, 48)).read_bytes()
    files = {
        "empty.mp4": b"",
        "text.mp4": b"no video\n" * 9,
        "begin.mp4": clip[:40],
        "half.mp4": clip[: len(clip) // 2],
        "noise.mkv": bytes(i * i % 251 for i in range(4000)),
        "image.png": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "animation.gif": b"GIF89a" + bytes(40),
        "page.mp4": b"<html><body>404</body></html>",
        "texts/readme.txt": b"no image",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    write_sound(folder / "sound.mp4")
    (folder / "nothing").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "nowhere.mp4").symlink_to("not/there.mp4")
    named = {
        **{name: name for name in files if "/" not in name},
        "texts": "no images",
        "nothing": "no images",
        "sound.mp4": "sound.mp4",
        "pipe.mp4": "a device or a pipe",
        "nowhere.mp4": "nowhere.mp4",
        "gone.mp4": "gone.mp4",
        "../clip.mp4": "leaves the media folder",
        "/usr/share/clip.mp4": "leaves the media folder",
        "https://example.com/clip.mp4": "an address",
        "a\0b.mp4": "NUL",
        f"{'n' * 300}.mp4": "too long",
        "half\ud800.mp4": "half a character",
    }
    rows = [({"video": name, "question": "Who?"}, told) for name, told in named.items()]
    others = [{"question": "Who?"}, {"video": 7, "question": "Who?"}, {"video": " "}]
    return rows + [(row, "video: got") for row in others]


def warned(folder: Path) -> str:
    """The name of a video that is damaged, of which most can be seen."""
    write_damaged(folder / "damaged.mp4")
    return "damaged.mp4"
