"""Checks of what a host's videos become: its pixels and features, and the tokens made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bvllm_adapters.certify.compared import near, same
from bvllm_adapters.certify.report import Check, NotApplicable
from bvllm_adapters.certify.subject import OTHER, PLENTY, QUESTION, Subject
from bvllm_adapters.conversation import OpenVideo
from bvllm_adapters.features import FrameFeatures, VisualTokens
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.testing.contract import (
    check_budget,
    check_deterministic,
    check_mass,
    check_selection,
    check_time_order,
)


def _budgets(available: int) -> list[int]:
    some = (1, 2, 3, 7, available // 3, available - 1, available, available + 1)
    return sorted({budget for budget in some if budget >= 1})


def _made(s: Subject) -> Iterator[tuple[OpenVideo, VisualTokens, int]]:
    """Tokens of each video under each budget, which comes with them."""
    for video in (s.video, s.short, s.picture):
        opened = s.open(video)
        free = s.tokens(opened, max_tokens=PLENTY)
        for budget in _budgets(len(free) + free.beside):
            yield opened, s.tokens(opened, max_tokens=budget), budget


def _available(s: Subject, opened: OpenVideo, made: VisualTokens) -> int:
    """Tokens that there were of the frames chosen, those of no frame included."""
    tokenizer: Any = s.model.balanced_tokenizer
    patches, most = opened.features.patches, tokenizer.config.tokens_per_frame
    one = torch.zeros(1, dtype=torch.int64)
    each = len((patches[one] if isinstance(patches, torch.Tensor) else patches(one))[0])
    if tokenizer.spatial_sampler is not None:
        each = most
    elif most is not None and opened.features.num_frames > 1:
        each = min(each, most)
    return len(made.selection) * each + made.beside


def budget(s: Subject) -> str:
    count = 0
    with s.wrapped():
        for opened, made, most in _made(s):
            found = len(made) + made.beside
            check_budget([found], most, available=_available(s, opened, made))
            count += 1
        for wrong in (0, -1):
            try:
                s.tokens(s.open(s.short), max_tokens=wrong)
            except ValueError as error:
                assert "max_tokens" in str(error), f"max_tokens={wrong}: got an error {error}"
            else:
                raise AssertionError(f"max_tokens={wrong}: got tokens, wanted a ValueError")
    return f"{count} budgets on a video, a short one and a picture"


def no_budget(s: Subject) -> str:
    with s.wrapped():
        opened = s.open(s.video)
        free = s.tokens(opened, max_tokens=PLENTY)
        enough = len(free) + free.beside
        exact = s.tokens(opened, max_tokens=enough)
        same("tokens under a budget that is just met", exact.tokens, free.tokens)
        assert bool((free.size == 1).all()), "tokens were merged without need"
    return f"{enough} tokens under a budget of as many, and of {PLENTY}"


def order(s: Subject) -> str:
    count = 0
    with s.wrapped():
        for _, made, _ in _made(s):
            check_time_order(made)
            count += 1
    return f"frames and places of {count} results"


def selection(s: Subject) -> str:
    merges = 0
    with s.wrapped() as model:
        tokenizer = model.balanced_tokenizer
        learned = not tokenizer.chooses_untrained
        choices = tokenizer.config.num_frames if learned else None
        caught: list[Any] = []
        merger = tokenizer.budget_merger
        handle = merger.register_forward_hook(lambda _, args, out: caught.append((args[0], out)))
        try:
            for _, made, _ in _made(s):
                check_selection(made.selection, choices=choices)
                same("dtype of sizes", made.size.dtype, torch.float32)
        finally:
            handle.remove()
        for before, after in caught:
            of_largest = 1e-4 if s.dtype == torch.float32 else 2e-2  # where tokens are rounded
            tolerance = of_largest * max(1.0, float(before.abs().max()))
            check_mass(before.float(), after, tolerance=tolerance)
            merges += bool((after.size > 1).any())
    assert merges, "no budget merged any tokens, wanted one to"
    return f"{len(caught)} selections, {merges} of them merged, no mass lost"


def deterministic(s: Subject) -> str:
    with s.wrapped() as model:
        opened, again = s.open(s.video), s.open(s.video)
        same("features of the same video", again.features.cls, opened.features.cls)
        check_deterministic(lambda: [s.tokens(opened), s.tokens(again)])
        wanted = opened.ask(QUESTION, max_new_tokens=5, do_sample=False)
        model.train()
        try:
            got = s.open(s.video).ask(QUESTION, max_new_tokens=5, do_sample=False)
            assert model.training, "asking left the model in eval mode, wanted its own: train"
        finally:
            model.eval()
        same("answer in train mode", got.text, wanted.text)
        same("frames in train mode", got.trace.frames, wanted.trace.frames)
    return "features, tokens and answers, in eval and in train mode"


def chunks(s: Subject) -> str:
    s.needs_float32()
    ways = [Encoding(chunk_size=1, prefetch=0), Encoding(chunk_size=3, patches="again")]
    with s.wrapped():
        whole = s.open(s.video)
        wanted = s.tokens(whole)
        for how in ways:
            opened = s.open(s.video, encoding=how)
            near("frame features", opened.features.cls, whole.features.cls)
            got = s.tokens(opened)
            same(f"frames with {how.chunk_size} at a time", got.frame, wanted.frame)
            near(f"tokens with {how.chunk_size} at a time", got.tokens, wanted.tokens)
        stream = s.open(None)
        for frame, second in zip(s.video.frames, s.video.seconds, strict=True):
            stream.push(frame, [float(second)])
        got = s.tokens(stream)
        same("frames of a stream", got.frame, wanted.frame)
        near("tokens of a stream", got.tokens, wanted.tokens)
    return "frames seen 1 and 3 at a time, again, and pushed one by one"


def batch_of_videos(s: Subject) -> str:
    s.needs_float32()
    with s.wrapped() as model:
        tokenizer = model.balanced_tokenizer
        opened = [s.open(video) for video in (s.video, s.picture, s.other, s.short)]
        videos = [each.features for each in opened]
        questions = [QUESTION, "", OTHER, QUESTION]
        with torch.no_grad():
            together = tokenizer(videos, questions)
        for i, (each, question) in enumerate(zip(opened, questions, strict=True)):
            alone = s.tokens(each, question)
            same(f"frames of input {i} in a batch", together[i].frame, alone.frame)
            near(f"tokens of input {i} in a batch", together[i].tokens, alone.tokens)
    return f"{len(opened)} videos and pictures, alone and together"


def permuted(s: Subject) -> str:
    with s.wrapped() as model:
        tokenizer = model.balanced_tokenizer
        if tokenizer.chooses_untrained or not hasattr(tokenizer.frame_selector, "scores"):
            raise NotApplicable("its selector looks at when frames are shown, not at each alone")
        if tokenizer.config.time_encoding:
            raise NotApplicable("a temporal encoding is on")
        features = s.open(s.video).features
        turned = torch.arange(features.num_frames, device=features.cls.device).flip(0)
        text = tokenizer.question_tokenizer(QUESTION).to(features.cls.device)
        with torch.no_grad():
            cls = features.cls.to(tokenizer.dtype)
            scores = tokenizer.frame_selector.scores(cls, text)
            other = tokenizer.frame_selector.scores(cls[turned], text)
        near("scores of frames in another order", other, scores[:, turned])
    return f"{features.num_frames} frames, last to first"


def pictures(s: Subject) -> str:
    with s.wrapped() as model:
        called: list[Any] = []
        selector = model.balanced_tokenizer.frame_selector
        handle = selector.register_forward_hook(lambda *_: called.append(1))
        try:
            opened = s.open(s.picture)
            made = s.tokens(opened, "")
            same("frames of a picture", opened.features.num_frames, 1)
            same("frames that its tokens come from", made.frame.unique().tolist(), [0])
            answer = opened.ask("", max_new_tokens=3, do_sample=False)
            assert isinstance(answer.text, str), f"answer: got {answer.text!r}, wanted a text"
            assert not called, "a picture was given to the selector, wanted it to skip that"
        finally:
            handle.remove()
        s.open(s.video).ask("", max_new_tokens=3, do_sample=False)
    return "a picture skips selection; questions may be empty"


def refused(s: Subject) -> str:
    """What is no video is refused, and what is no number."""
    with s.wrapped() as model:
        for name, frames in (("no frames", s.video.frames[:0]), ("floats", s.video.frames / 255)):
            _refuses(name, lambda frames=frames: s.open(frames))
        opened = s.open(s.short)
        sight = opened.encoded.sight
        group = s.short.frames[: sight.frames_per_look]
        pixels = sight.pixels([group if sight.frames_per_look > 1 else group[0]])
        nan = torch.full_like(pixels, torch.nan)
        width = opened.features.cls.shape[1]
        wrong = (
            torch.zeros(3, width + 1),
            torch.zeros(3, 2, model.balanced_tokenizer.config.vision_width + 1),
        )
        with torch.no_grad():
            _refuses("pixels of NaN", lambda: s.host.look(model, nan))
            _refuses(
                "features of another width",
                lambda: model.balanced_tokenizer([FrameFeatures(*wrong)], [QUESTION]),
            )
    return "no frames, floats, pixels of NaN, another width"


def _refuses(name: str, run: Any) -> None:
    try:
        run()
    except (ValueError, TypeError) as error:
        assert "got" in str(error), f"{name}: got an error that does not say what came: {error}"
    else:
        raise AssertionError(f"{name}: got no error, wanted a ValueError")


def looks(s: Subject) -> str:
    """`look` gives a feature and patches of each frame, of the widths that `config` says."""
    with s.wrapped() as model:
        opened = s.open(s.video)
        sight = opened.encoded.sight
        n = sight.frames_per_look
        groups = [s.video.frames[i : i + n] for i in (0, n)]
        pixels = sight.pixels([group if n > 1 else group[0] for group in groups])
        same("pixels of two frames or groups", len(pixels), 2)
        with torch.no_grad():
            seen = s.host.look(model, pixels)
        assert isinstance(seen, FrameFeatures), f"look: got {type(seen)}, wanted FrameFeatures"
        config = model.balanced_tokenizer.config
        if opened.features.cls.shape[1] == seen.cls.shape[1]:
            same("width of frame features", seen.cls.shape[1], config.selection_width)
        assert isinstance(seen.patches, torch.Tensor), "look: got patches that are no tensor"
        assert seen.patches.shape[2] % config.vision_width == 0, (
            f"patches: got width {seen.patches.shape[2]}, wanted vision_width={config.vision_width}"
        )
        tower = s.host.tower(model)
        assert any(part is tower for part in model.modules()), "tower: got no part of the model"
        black = sight.pixels([np.zeros_like(group if n > 1 else group[0]) for group in groups])
        with torch.no_grad():
            other = s.host.look(model, black)
        assert not torch.equal(other.cls, seen.cls), "black frames look like those of a video"
    return f"{tuple(pixels.shape)} pixels, {tuple(seen.patches.shape)} patches"


def precision(s: Subject) -> str:
    with s.wrapped():
        opened = s.open(s.video)
        plain = s.tokens(opened)
        device = opened.features.cls.device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            mixed = s.tokens(opened)
        for name, made in (("", plain), (" under autocast", mixed)):
            same(f"dtype of sizes{name}", made.size.dtype, torch.float32)
            same(f"dtype of weights{name}", made.selection.weights.dtype, torch.float32)
        same("frames under autocast", mixed.frame, plain.frame)
    half = s.copy().to(torch.bfloat16)
    with s.wrapped(model=half):
        opened = s.open(s.video, half)
        made = s.tokens(opened)
        same("dtype of sizes in bfloat16", made.size.dtype, torch.float32)
        same("dtype of weights in bfloat16", made.selection.weights.dtype, torch.float32)
        opened.ask(QUESTION, max_new_tokens=2, do_sample=False)
    return "float32, autocast and a model in bfloat16"


CHECKS = (
    Check("look", "", "frames become features of the widths that config says", looks),
    Check("budget", "1, 2", "exactly min(budget, what there is)", budget),
    Check("no budget", "1", "a budget that is not reached changes no bit", no_budget),
    Check("order", "3", "time order, and places within a frame", order),
    Check("selection", "4", "rows sum to 1, merging keeps sizes and mass", selection),
    Check("deterministic", "5", "the same call gives the same bits", deterministic),
    Check("chunks", "6", "how many frames are seen at a time changes nothing", chunks),
    Check("batch of videos", "6", "a video does not depend on others", batch_of_videos),
    Check("permuted frames", "7", "scores go with their frames", permuted),
    Check("pictures", "8", "a picture is a video of one frame", pictures),
    Check("refusals", "8", "what is no video is a ValueError", refused),
    Check("precision", "11", "sizes and weights are in float32", precision),
)
