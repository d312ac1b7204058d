"""Rebuild the needle task's data from scikit-learn's digits and scikit-image's photographs.

    pip install scikit-learn scikit-image && python examples/make_needle_data.py

The files are shipped, so that the needle task needs neither package; the video of `bvllm demo`
is made of them.
"""

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

from bvllm_adapters.evaluation.needle import DATA, DEMO_VIDEO, demo_haystack

SHORT_SIDE = 256  # pixels

PHOTOS = {
    "train": ["astronaut", "camera", "chelsea", "china", "coins", "grass", "gravel", "hubble",
              "ihc", "moon", "retina"],
    "test": ["brick", "coffee", "flower", "rocket"],
}  # fmt: skip


def photo(name: str) -> np.ndarray:
    if name in ("china", "flower"):
        return sklearn.datasets.load_sample_image(f"{name}.jpg")
    if name == "hubble":
        return skimage.data.hubble_deep_field()
    if name == "ihc":
        return skimage.data.immunohistochemistry()
    return getattr(skimage.data, name)()


def main() -> None:
    for split, names in PHOTOS.items():
        (DATA / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            image = Image.fromarray(photo(name)).convert("RGB")
            scale = SHORT_SIDE / min(image.size)
            size = [max(SHORT_SIDE, round(side * scale)) for side in image.size]
            image.resize(size, Image.Resampling.LANCZOS).save(
                DATA / split / f"{name}.jpg", quality=85, optimize=True
            )
    digits = sklearn.datasets.load_digits()
    np.savez_compressed(
        DATA / "digits.npz",
        images=digits.images.astype(np.uint8),  # (1797, 8, 8), 0 to 16
        labels=digits.target.astype(np.uint8),
    )
    demo_haystack().write(DEMO_VIDEO, size=256, fps=8)


if __name__ == "__main__":
    main()
