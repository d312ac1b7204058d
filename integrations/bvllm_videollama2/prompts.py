"""How a prompt is written, and how the question is read out of one."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Literal

from torch import Tensor

from bvllm_adapters.question import question_from_prompt
from bvllm_adapters.weights.json_file import blamed
from bvllm_videollama2.inputs import IMAGE, VIDEO

Kind = Literal["video", "image", "text"]
TAGS = {"video": ("<video>", VIDEO), "image": ("<image>", IMAGE)}

# Upstream gives this to the families that were trained with Llama-2's habits.
SYSTEM_TAGS = "<<SYS>>\n{}\n<</SYS>>"
SYSTEM = SYSTEM_TAGS.format(
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as "
    "possible, while being safe.  Your answers should not include any harmful, unethical, racist, "
    "sexist, toxic, dangerous, or illegal content. Please ensure that your responses are socially "
    "unbiased and positive in nature.\nIf a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
WITH_SYSTEM = ("videollama2", "videollama2_mistral", "videollama2_mixtral")

# The first user turn in the formats of the four families' chat templates. Cut-off prompts may
# lack its end.
_USER_TURN = re.compile(
    r"(?:<\|im_start\|>\s*user\s|\[INST\]|<\|start_header_id\|>user<\|end_header_id\|>)"
    r"(.*?)(?:<\|im_end\|>|\[/INST\]|<\|eot_id\|>|\Z)",
    re.DOTALL,
)
_SYSTEM = re.compile(r"<<SYS>>.*?<</SYS>>", re.DOTALL)


def question_in(
    ids: Tensor,
    tokenizer: Any,
    *,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> str:
    """What the first user turn of a prompt asks; all of its text where no turn is recognised.

    Args: see `bvllm_adapters.question.question_from_prompt`. With labels, nothing from the first
    answer on is read.
    """

    def decode(words: list[int]) -> str:
        turn = _USER_TURN.search(_SYSTEM.sub("", tokenizer.decode(words)))
        text: str = turn[1] if turn else tokenizer.decode(words, skip_special_tokens=True)
        return text

    return question_from_prompt(ids, decode, attention_mask=attention_mask, labels=labels)


@cache
def text_tokenizer(folder: str) -> Any:
    """The language model's tokenizer in a checkpoint's folder or the hub's cache; read once."""
    # Any config is given, as the folder's own is none that AutoTokenizer knows.
    from transformers import AutoTokenizer, PreTrainedConfig

    with blamed(f"{folder}: tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, config=PreTrainedConfig(), local_files_only=True, trust_remote_code=False
        )
        tokenizer("What?")  # settings that it was made with, but cannot work by
        return tokenizer
