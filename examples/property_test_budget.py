"""Property-test the visual-token budget of a host: of ours here, of your own in your project.

    python examples/property_test_budget.py      or: pytest examples/property_test_budget.py

Hypothesis makes up videos of 1 to 400 frames, questions and budgets, and shrinks what fails to
the smallest video that still fails. The tokenizer is small and its weights are random: what holds
is arithmetic and does not depend on training.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bvllm_adapters import testing

WIDTH = 16


@settings(deadline=None, max_examples=50)
@given(
    tokenizer=testing.tokenizers(vision_width=WIDTH),
    video=testing.frame_features(width=WIDTH),
    image=testing.frame_features(width=WIDTH, max_frames=1),
    question=testing.questions(),
    max_tokens=testing.budgets(),
)
def test_a_prompt_with_a_video_and_an_image_keeps_its_budget(
    tokenizer, video, image, question, max_tokens
):
    inputs, questions, one_prompt = [video, image], [question, question], [0, 0]
    free = tokenizer(inputs, questions, prompts=one_prompt, max_tokens=10**6)
    bound = tokenizer(inputs, questions, prompts=one_prompt, max_tokens=max_tokens)
    testing.check_budget(bound, max_tokens, available=sum(len(tokens) for tokens in free))
    for tokens in bound:
        testing.check_time_order(tokens)
        testing.check_selection(tokens.selection)


@settings(deadline=None, max_examples=50)
@given(frames=st.integers(1, 400), max_tokens=testing.budgets())
def test_a_host_of_your_own(frames, max_tokens):
    """Any function that gives visual tokens will do: put yours in the place of this one."""

    def my_host(frames: int, max_tokens: int) -> int:
        per_frame = max(1, max_tokens // frames)  # at least one token for each frame ...
        return min(frames, max_tokens) * per_frame  # ... of as many frames as fit

    testing.check_budget([my_host(frames, max_tokens)], max_tokens)


if __name__ == "__main__":
    test_a_prompt_with_a_video_and_an_image_keeps_its_budget()
    test_a_host_of_your_own()
    print("50 + 50 examples: no budget was exceeded")
