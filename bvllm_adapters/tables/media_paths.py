"""Where a row's image or video lies, if it is a place that a row may name."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on Linux
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters: Windows' drives have one
_SYSTEM = ("/dev", "/proc", "/sys")
_MEMORY = "/dev/shm"  # a folder like any other


class RowError(ValueError):
    """A row that is not as it should be; says what came and what was wanted."""


def media_path(
    kind: str, path: str, media: Path, *, outside: bool = False, absolute: bool = True
) -> Path:
    """A row's path in the media folder, or an absolute one as it is.

    What links point to is not looked at: whoever fills the folder says what lies in it.

    Args:
        kind: "image" or "video", for messages. media: folder that relative paths begin in.
        outside: whether `..` may lead out of it. absolute: whether absolute paths may, at any rate.

    Raises:
        RowError: an address, a device, a name that no file can have, a path out of the folder.
    """

    def wrong(reason: str, wanted: str) -> RowError:
        return RowError(f"{kind}: got {path[:200]!r}, {reason}, wanted {wanted}")

    try:
        parts = os.fsencode(path).split(b"/")
    except UnicodeEncodeError as error:
        raise wrong("which is no Unicode", "the path of a file") from error
    if b"\0" in b"".join(parts):
        raise wrong("which has a NUL in it", "the path of a file")
    if max(map(len, parts)) > LONGEST_NAME or len(os.fsencode(media / path)) > LONGEST_PATH:
        raise wrong("which is too long", f"names of {LONGEST_NAME} bytes at most")
    if _ADDRESS.match(path):
        raise wrong("which is an address", "the path of a file (./NAME for a name with a colon)")
    within = f"one in {media} (or outside_media: true)"
    if not outside and _leaves(path):
        raise wrong("which leaves the media folder", within)
    if not outside and not absolute and not _within(path, media):
        raise wrong("which leaves the media folder", within)
    found = os.path.abspath(media / path)
    inside = [root for root in (*_SYSTEM, _MEMORY) if f"{found}/".startswith(f"{root}/")]
    if inside and _MEMORY not in inside:
        raise wrong("which is the system's", "an image, a video or a folder of images")
    return media / path


def _within(path: str, media: Path) -> bool:
    """Whether a path, an absolute one too, is one in the folder, by its name."""
    folder = os.path.abspath(media)
    found = os.path.abspath(os.path.join(folder, path))
    return found == folder or found.startswith(folder.rstrip(os.sep) + os.sep)


def _leaves(path: str) -> bool:
    """Whether a relative path goes above where it begins, on its way or at its end."""
    names = PurePosixPath(path.replace("\\", "/"))
    depth = 0
    for name in () if names.is_absolute() else names.parts:
        depth += -1 if name == ".." else 1
        if depth < 0:
            return True
    return False
