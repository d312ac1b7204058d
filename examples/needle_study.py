"""The paper's claims on the needle task: what is trained, what is measured, and the tables.

    python examples/needle_study.py --work study

All models are trained by train_demo.py's stages; each that is in --work, and each measurement, is
not repeated, so a study that was stopped goes on. Tables are written to needle_study.md.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from needle_bank import Bank, make_clips
from torch import Tensor, nn
from train_demo import WIDTH, Steps, build, learn, see, see_all, shrink, train

from bvllm_adapters import BalancedTokenizer, FrameFeatures
from bvllm_adapters.build import build_qformer
from bvllm_adapters.evaluation.intervals import share
from bvllm_adapters.evaluation.methods import METHODS, TwoTokenSampler
from bvllm_adapters.evaluation.needle import KINDS, Haystack, make_haystack
from bvllm_adapters.evaluation.needle_accuracy import Row, evaluate
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_qwen2 import HOST

LENGTHS = (32, 64, 128, 256, 512)
SEEDS = (0, 1, 2)
VIDEO_SEED = 1000  # of the videos that are measured on


class Resampler(nn.Module):
    """Flamingo's perceiver resampler, given the text beside the frames, as in the paper's 4.4.

    It stands where a Q-Former does: queries (B, Q, H), visual (B, N, W), text ids (B, L) and
    their mask in, (B, Q, H) out. Each layer's queries read frames, text and themselves at once.
    """

    def __init__(
        self, *, width: int, heads: int, layers: int, visual_width: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.width, self.visual_width = width, visual_width
        self.visual = nn.Linear(visual_width, width)
        self.words = nn.Embedding(vocab_size, width)
        self.places = nn.Embedding(64, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )

    def forward(
        self,
        queries: Tensor,
        visual: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        text = self.words(text_ids) + self.places.weight[: text_ids.shape[1]]
        read = torch.cat([self.visual(visual), text], dim=1)
        unread = torch.zeros(read.shape[:2], dtype=torch.bool)
        if text_mask is not None:
            unread[:, visual.shape[1] :] = ~text_mask.bool()
        for layer in self.layers:
            queries = layer(queries, read, memory_key_padding_mask=unread)
        return queries


def two_tokens_of_chosen_frames(tokenizer: BalancedTokenizer, *, merge: bool) -> BalancedTokenizer:
    """Table 3's middle rows: LLaMA-VID's two tokens of twice as many chosen frames."""
    config = replace(tokenizer.config, num_frames=8, tokens_per_frame=2)
    sampler = TwoTokenSampler(build_qformer(config), num_queries=tokenizer.config.tokens_per_frame)
    without = {} if merge else {"temporal_merger": None}
    return BalancedTokenizer(config, spatial_sampler=sampler, **without)


def with_resampler(tokenizer: BalancedTokenizer) -> BalancedTokenizer:
    config = tokenizer.config
    resampler: Any = Resampler(
        width=WIDTH,
        heads=config.qformer_heads,
        layers=config.qformer_layers,
        visual_width=WIDTH,
        vocab_size=config.vocab_size,
    )
    selector = FrameSelector(resampler, num_frames=config.num_frames, straight_through=True)
    return BalancedTokenizer(config, frame_selector=selector)


class Study:
    """Models and rows, from the work folder where they are there."""

    def __init__(self, work: Path, steps: Steps, videos: int) -> None:
        self.work, self.steps, self.videos = work, steps, videos
        self.of_method = cache(self._of_method)
        self.model, self.processor = build("bvllm", 0)
        self.bank = see_all(self.model, self.processor, work, steps)
        if not (work / "test_bank.safetensors").exists():
            clips = make_clips(100, split="test", seed=1, shrink=shrink)
            see(self.model, self.processor, clips).save(work / "test_bank.safetensors")
        self.test_bank = Bank.load(work / "test_bank.safetensors")

    def measure(
        self,
        name: str,
        models: Callable[[], dict[str, nn.Module]],
        *,
        feature: Callable[[FrameFeatures], FrameFeatures] = lambda features: features,
        **settings: Any,
    ) -> list[Row]:
        """Rows of these models on held-out videos, put together from a bank of decoded frames."""
        file = self.work / "rows" / f"{name}.json"
        if not file.exists():
            rng = np.random.default_rng(VIDEO_SEED)

            def watch(haystack: Haystack) -> FrameFeatures:
                return feature(self.test_bank.features(self.test_bank.frames_of(haystack, rng)))

            made = models()
            torch.manual_seed(VIDEO_SEED)  # for choices that are measured with noise
            rows = evaluate(
                made,
                self.processor,
                watch=watch,
                **{"videos": self.videos, "seed": VIDEO_SEED, **settings},
            )
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps([row.to_dict() for row in rows]))
            print(f"measured  {name}", flush=True)
        return [Row(**row) for row in json.loads(file.read_text())]

    def _of_method(self, method: str, seed: int = 0) -> nn.Module:
        model, _ = train(method, seed=seed, work=self.work, steps=self.steps)
        return model

    @torch.no_grad()
    def sampled(self, patches: Tensor) -> Tensor:
        """(T, P, C) patches -> (T, C): the mean of what the trained sampler makes of a frame."""
        trained: Any = self.of_method("bvllm")
        sampler = trained.balanced_tokenizer.spatial_sampler
        return torch.cat(
            [
                sampler(part.float(), torch.zeros(len(part), 0).long()).mean(dim=1)
                for part in patches.split(1024)
            ]
        )

    def oracle(self, needles: int) -> str:
        """Accuracy where a question comes with one frame of each needle it is about, no others."""
        file = self.work / "rows" / f"oracle_{needles}.json"
        if not file.exists():
            right, rng = [], np.random.default_rng(VIDEO_SEED)
            model: Any = self.of_method("bvllm")
            for number in range(self.videos):
                haystack = make_haystack([VIDEO_SEED, number], needles=needles)
                frames = self.test_bank.frames_of(haystack, rng)
                answers = []
                for question in haystack.questions:
                    starts = [haystack.needles[i].start for i in question.needles]
                    features = self.test_bank.features(frames[starts])
                    tokens = model.balanced_tokenizer([features], [question.text])[0]
                    (text,) = HOST.answers(model, self.processor, [question.text], [tokens])
                    answers.append(text == question.answer)
                right.append(answers)
            file.write_text(json.dumps(share(right)))
        accuracy, low, high = json.loads(file.read_text())
        return f"{accuracy:.2f} [{low:.2f}, {high:.2f}]"

    def variant(
        self,
        name: str,
        reader: str,
        tokenizer: Callable[[BalancedTokenizer], BalancedTokenizer],
        feature: Callable[[Bank], Tensor] | None = None,
        *,
        covering: bool = True,
    ) -> nn.Module:
        """A B-VLLM with another tokenizer, or another feature of each frame to choose by."""
        model, processor = build("bvllm", 0)
        see_all(model, processor, self.work, self.steps)
        model.balanced_tokenizer = tokenizer(model.balanced_tokenizer)
        bank = copy.copy(self.bank)
        if feature is not None:
            bank.cls = feature(bank).half()
        learn(
            model, processor, bank, name=name, reader=reader, seed=0, work=self.work,
            steps=self.steps,
            covering=covering,
        )  # fmt: skip
        return model


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def interval(row: Row) -> str:
    return f"{row.accuracy:.2f} [{row.low:.2f}, {row.high:.2f}]"


def over_seeds(values: list[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def main_tables(study: Study, seeds: Iterable[int]) -> Iterable[str]:
    """Accuracy and recall by video length, three seeds of training."""
    by_seed = {
        seed: {
            needles: study.measure(
                f"methods_{needles}_{seed}",
                lambda seed=seed: {method: study.of_method(method, seed) for method in METHODS},  # type: ignore[misc]
                frames=LENGTHS,
                needles=needles,
            )
            for needles in (3, 8)
        }
        for seed in seeds
    }
    for needles in (3, 8):
        for figure in ("accuracy", "recall"):
            yield f"### {figure.capitalize()}, {needles} needles\n"
            yield table(
                ["method", *(f"{length} frames" for length in LENGTHS)],
                (
                    [
                        method,
                        *(
                            over_seeds(
                                [
                                    getattr(row, figure)
                                    for rows in by_seed.values()
                                    for row in rows[needles]
                                    if (row.method, row.frames) == (method, length)
                                ]
                            )
                            for length in LENGTHS
                        ),
                    ]
                    for method in METHODS
                ),
            )
    yield "### By kind of question, 64 frames, seed 0\n"
    yield table(
        ["method", "needles", *KINDS],
        (
            [row.method, needles, *(f"{row.kinds.get(kind, float('nan')):.2f}" for kind in KINDS)]
            for needles, rows in next(iter(by_seed.values())).items()
            for row in rows
            if row.frames == 64
        ),
    )


def ablations(study: Study) -> Iterable[str]:
    """Tables 3, 4 and 7 of the paper; one seed, reading stages shared."""

    def line(name: str, model: Callable[[], nn.Module], **settings: Any) -> list[str]:
        found = study.measure(
            f"ablation_{name}", lambda: {name: model()}, frames=(64, 256), needles=8, **settings
        )
        recalls = [f"{row.recall:.2f}" for row in found]
        return [*map(interval, found), *recalls, f"{found[0].tokens:.1f}"]

    head = ["64 frames", "256 frames", "recall, 64", "recall, 256", "tokens"]
    ours = line("bvllm", lambda: study.of_method("bvllm"))

    def chosen(name: str, *, merge: bool) -> list[str]:
        change = partial(two_tokens_of_chosen_frames, merge=merge)
        return line(name, lambda: study.variant(name, "two_tokens", change))

    yield (
        "### Stages (Table 3)\n\n8 needles, one seed. Two tokens of each of 8 frames, uniform or "
        "chosen (F.S.), merged where chosen twice (T.M.); or four of each of 4 (S.S.).\n"
    )
    yield table(
        ["F.S.", "T.M.", "S.S.", *head],
        [
            ["", "", "", *line("two_tokens", lambda: study.of_method("two_tokens"))],
            ["x", "", "", *chosen("select", merge=False)],
            ["x", "x", "", *chosen("select_merge", merge=True)],
            ["x", "x", "x", *ours],
        ],
    )
    yield "### What selects (Table 4)\n\n8 needles, one seed.\n"
    resampler = line("resampler", lambda: study.variant("resampler", "bvllm", with_resampler))
    yield table(["selector", *head], [["Q-Former", *ours], ["Resampler", *resampler]])

    yield (
        "### What the selector learns from\n\n8 needles, one seed. The shipped model's is told "
        "which frames show what is asked about; the paper's learns from the answers alone."
    )
    told = line(
        "answers",
        lambda: study.variant("answers", "bvllm", lambda same: same, covering=False),
    )
    yield table(["learns from", *head], [["frames, then answers", *ours], ["answers", *told]])

    yield (
        "### What stands for a frame (Table 7)\n\n8 needles, one seed. Q-Former: the mean of the "
        "trained sampler's tokens, asked nothing.\n"
    )

    def pooled(name: str, pool: Callable[[Tensor], Tensor]) -> list[str]:
        return line(
            f"feature_{name}",
            lambda: study.variant(
                f"feature_{name}", "bvllm", lambda same: same, lambda bank: pool(bank.patches)
            ),
            feature=lambda features: replace(features, cls=pool(features.patches)),
        )

    yield table(
        ["feature", *head],
        [
            ["CLS", *ours],
            ["mean", *pooled("mean", lambda patches: patches.float().mean(dim=1))],
            ["max", *pooled("max", lambda patches: patches.float().amax(dim=1))],
            ["Q-Former", *pooled("qformer", study.sampled)],
        ],
    )


def sweeps(study: Study) -> Iterable[str]:
    """Figures 3 and 5 of the paper: other settings of the trained model."""

    def measured(name: str, change: Callable[[Any], None], **settings: Any) -> list[Row]:
        def models() -> dict[str, nn.Module]:
            changed: Any = copy.deepcopy(study.of_method("bvllm"))
            change(changed.balanced_tokenizer)
            return {"bvllm": changed}

        return study.measure(f"sweep_{name}", models, **{"needles": 8, "frames": (64,), **settings})

    def first_queries(frames: int, tokens: int) -> Callable[[Any], None]:
        def change(tokenizer: Any) -> None:
            selector, sampler = tokenizer.frame_selector, tokenizer.spatial_sampler
            selector.queries = nn.Parameter(selector.queries[:frames].detach())
            sampler.queries = nn.Parameter(sampler.queries[:tokens].detach())

        return change

    counts = (1, 2, 3, 4)
    yield "### L* x R (Figure 3a)\n\nThe first queries of each; 64 frames, 8 needles.\n"
    yield table(
        ["L*", *(f"R = {tokens}" for tokens in counts)],
        (
            [
                frames,
                *(
                    interval(measured(f"{frames}_{tokens}", first_queries(frames, tokens))[0])
                    for tokens in counts
                ),
            ]
            for frames in counts
        ),
    )

    def noisy(temperature: float, threshold: float) -> Callable[[Any], None]:
        def change(tokenizer: Any) -> None:
            tokenizer.frame_selector.evaluation = "sample"
            tokenizer.frame_selector.temperature = temperature
            tokenizer.temporal_merger.threshold = threshold

        return change

    gammas = (0.25, 0.5, 0.75, 0.9)
    yield (
        "### tau x gamma (Figure 3b)\n\nChosen softly and with noise, as the authors' code does; "
        "hard choices depend on neither. 64 frames, 8 needles.\n"
    )
    yield table(
        ["tau", *(f"gamma = {gamma}" for gamma in gammas)],
        (
            [
                tau,
                *(interval(measured(f"{tau}_{gamma}", noisy(tau, gamma))[0]) for gamma in gammas),
            ]
            for tau in (0.1, 0.5, 1.0)
        ),
    )
    thetas = (16, 12, 8, 4, 2, 1)

    def under(theta: int, needles: int) -> str:
        name = f"theta_{theta}_{needles}"
        return interval(measured(name, lambda _: None, needles=needles, max_tokens=theta)[0])

    yield "### theta (Figure 3c)\n\n64 frames.\n"
    yield table(
        ["needles", *(f"theta = {theta}" for theta in thetas)],
        ([needles, *(under(theta, needles) for theta in thetas)] for needles in (3, 8)),
    )
    yield "### L* by length (Figure 5)\n\nThe first queries; 8 needles.\n"
    yield table(
        ["L*", *(f"{length} frames" for length in LENGTHS)],
        (
            [
                frames,
                *map(
                    interval, measured(f"long_{frames}", first_queries(frames, 4), frames=LENGTHS)
                ),
            ]
            for frames in counts
        ),
    )
    yield (
        "### What holds it back\n\nThe trained model on 64 frames, and on nothing but one frame of "
        "each needle that the question is about.\n"
    )
    yield table(
        ["needles", "frames by the model", "frames by an oracle"],
        ([needles, under(16, needles), study.oracle(needles)] for needles in (3, 8)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("study"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--videos", type=int, default=100, help="that each row is measured on")
    parser.add_argument("--seeds", type=int, default=3, help="of training")
    parser.add_argument("--scale", type=float, default=1.0, help="of all stages' steps")
    options = parser.parse_args()
    study = Study(options.work, Steps().scaled(options.scale), options.videos)
    parts = [
        "# The needle study",
        f"Made by `python examples/needle_study.py`: {options.videos} videos a figure, about five "
        "questions each, of held-out digits and photographs; 16 visual tokens for all, unless a "
        f"table says otherwise; seeds of training: {options.seeds}. In brackets: 95 % intervals "
        "over videos; after ±: standard deviation over seeds.",
    ]
    tables = chain(main_tables(study, range(options.seeds)), sweeps(study), ablations(study))
    for part in tables:
        parts.append(part.strip())
        # After each, so that a study that is stopped has something to show.
        options.out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
