"""Questions about examples/needles.mp4, asked in every way that lmms-eval has."""

from pathlib import Path

VIDEO = Path(__file__).parents[3] / "examples" / "needles.mp4"


def video(doc):
    return [str(VIDEO)]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def right(doc, results):
    return {"right": float(results[0] == doc["answer"])}


def place_of_answer(doc):
    return doc["options"].index(doc["answer"])


def conversation(
    doc,
    lmms_eval_specific_kwargs=None,
    previous_output=None,
    round_idx=None,
    previous_round_info=None,
):
    """The question, once more about the video that is open, and about the video shown anew."""
    if round_idx is None:
        return doc["question"]
    shown = video(doc) if round_idx == 2 else None
    return shown, doc["question"], round_idx == 3, previous_output, round_idx


def right_in_all_rounds(doc, results):
    said = results[0] if isinstance(results[0], list) else results
    return {"right": float(len(said) == 3 and said[0] == said[2] == doc["answer"])}
