"""VNBench: needles in videos, asked for by multiple choice four times, the options turned round.

A sample counts where all four tries are right. Accuracy is the mean over types of samples, of which
there are three each of retrieval, ordering and counting (Zhao et al., arXiv 2406.09367; prompt,
file and rule are those of the repository joez17/VideoNIAH).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from bvllm_adapters.evaluation.letters import letter_of, lettered
from bvllm_lmms_eval.local_data import dataset_of, found, rows_of

TRIES = 4
GROUPS = {"retrieval": "ret", "ordering": "ord", "counting": "cnt"}

Result = Mapping[str, Any]  # sample, type, right


def documents(where: Any) -> Any:
    """The questions of the user's copy; see `local_data`."""
    folder, rows = rows_of(where[0])
    return dataset_of([_document(folder, row) for row in rows])


def visual(doc: Mapping[str, Any]) -> list[str]:
    """The video, which is looked for when it is wanted: a part of the videos can be tried."""
    folder, video = Path(doc["folder"]), doc["video"].lstrip("/")
    name = Path(video).name
    return [found((folder / video, folder / "VNBench_new" / name, folder / "videos" / name))]


def text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    return lettered(doc["question"], doc["options"])


def results(doc: Mapping[str, Any], said: Sequence[str]) -> dict[str, Any]:
    """One try, for each metric to gather."""
    right = letter_of(said[0], doc["options"]) == ascii_uppercase.index(doc["answer"])
    one = {"sample": f"{doc['type']} {doc['video']}", "type": doc["type"], "right": right}
    return {f"vnbench_{name}": one for name in ("overall", *GROUPS, "single_tries")}


def overall(tries: Sequence[Result]) -> float:
    """Mean over all types."""
    return _mean_over_types(tries, "")


def retrieval(tries: Sequence[Result]) -> float:
    return _mean_over_types(tries, GROUPS["retrieval"])


def ordering(tries: Sequence[Result]) -> float:
    return _mean_over_types(tries, GROUPS["ordering"])


def counting(tries: Sequence[Result]) -> float:
    return _mean_over_types(tries, GROUPS["counting"])


def single_tries(tries: Sequence[Result]) -> float:
    """Of all tries each for itself: not VNBench's rule, by which guessing gains nothing."""
    return sum(bool(one["right"]) for one in tries) / max(1, len(tries))


def _mean_over_types(tries: Sequence[Result], group: str) -> float:
    """NaN where nothing of the group was asked."""
    right: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in tries:
        if one["type"].startswith(group):
            right[one["type"]][one["sample"]] += one["right"]
    if not right:
        return float("nan")
    each = [
        sum(count == TRIES for count in samples.values()) / len(samples)
        for samples in right.values()
    ]
    return sum(each) / len(each)


def _document(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "video": row["video"],
        "question": row["question"],
        "options": [str(option) for option in row["options"]],
        "answer": row["gt_option"],
        "type": row["type"],
        "try": row["try"],
    }
