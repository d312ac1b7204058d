"""MSVD-QA and MSRVTT-QA: open questions, each with an answer of one word (Xu et al., 2017).

The paper lets GPT-3.5 judge whether an answer means the right one. Here words are compared, which
costs nothing and is another measure: its figures do not stand beside the paper's. `--log_samples`
keeps question, answer and reply for whoever wants a judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bvllm_adapters.evaluation.exact_match import normalised
from bvllm_lmms_eval.local_data import FORMATS, dataset_of, found, rows_of


def documents(where: Any) -> Any:
    """The questions of the user's copy; see `local_data`."""
    folder, rows = rows_of(where[0])
    return dataset_of([_document(folder, row) for row in rows])


def visual(doc: Mapping[str, Any]) -> list[str]:
    """The video, by its number as the data sets' copies name it."""
    number, folder = doc["video_id"], Path(doc["folder"])
    names = [f"{before}{number}{end}" for before in ("video", "", "vid") for end in FORMATS]
    inside = ("videos", "video", "")
    return [found(folder / place / name for place in inside for name in names)]


def text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    said = lmms_eval_specific_kwargs or {}
    question = doc["question"].rstrip("?").strip()
    return f"{said.get('pre_prompt', '')}{question}?{said.get('post_prompt', '')}"


def results(doc: Mapping[str, Any], said: Sequence[str]) -> dict[str, float]:
    """exact_match: the answer and nothing else. answer_in_reply: its words, one after another."""
    reply, answer = normalised(said[0]), normalised(doc["answer"])
    return {
        "exact_match": float(reply == answer),
        "answer_in_reply": float(f" {answer} " in f" {reply} "),
    }


def _document(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "id": str(row["id"]),
        "video_id": str(row["video_id"]),
        "question": row["question"],
        "answer": str(row["answer"]),
    }
