"""The needles in footage, and the harness that sets ways to spend a budget beside each other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bvllm_adapters as bvllm
from bvllm_adapters.evaluation.needle import DATA, DEMO_VIDEO

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As natural_media.py fills one, here with cuttings of the library's own photographs."""
    folder = tmp_path_factory.mktemp("media")
    sys.path.insert(0, str(EXAMPLES))
    from natural_media import CATEGORIES

    sys.path.remove(str(EXAMPLES))
    photos = sorted(DATA.rglob("*.jpg"))
    for number, category in enumerate(CATEGORIES):
        (folder / "pictures" / category).mkdir(parents=True)
        with Image.open(photos[number]) as photo:
            for k in range(5):
                cutting = photo.convert("RGBA").crop((10 * k, 0, 10 * k + 60, 60))
                cutting.save(folder / "pictures" / category / f"{k}.png")
    for split in ("train", "test"):
        (folder / "footage" / split).mkdir(parents=True)
        (folder / "footage" / split / f"{split}.mp4").symlink_to(DEMO_VIDEO.resolve())
    (folder / "tower.pth").touch()
    return folder


def test_what_is_missing_is_told_with_how_it_comes(tmp_path):
    from natural_media import Media

    with pytest.raises(FileNotFoundError, match=r"pictures is missing, wanted .*natural_media.py"):
        Media(tmp_path)


def test_pictures_of_a_split_are_not_in_the_other(folder):
    from natural_media import Media

    media = Media(folder)
    for category in media.categories:
        train, test = (set(media.pictures(category, split)) for split in ("train", "test"))
        assert train and test and not train & test


@pytest.mark.parametrize("style", ["insert", "edit"])
def test_a_haystack_follows_from_its_seed_and_its_questions_can_be_told(folder, style):
    from natural_media import Media
    from needles_in_footage import make_haystack

    media = Media(folder)
    kinds, answers = [], []
    for number in range(12):
        one = make_haystack([3, number], media, num_frames=24, style=style)
        assert one == make_haystack([3, number], media, num_frames=24, style=style)
        cards = one.needles
        covered = [second for card in cards for second in card.seconds]
        assert len(covered) == len(set(covered)) and max(covered) < 24  # no two at once
        for asked in one.questions:
            assert asked.answer in asked.options and len(set(asked.options)) == 4
            told = [cards[i] for i in asked.needles]
            kinds.append(asked.kind)
            if asked.kind == "retrieval":
                (color,) = [c for c in {c.color for c in cards} if f" {c} card" in asked.text]
                assert [c.category for c in cards if c.color == color] == [asked.answer]
            elif asked.kind == "ordering":
                assert asked.answer == ", ".join(c.category for c in told)
                assert told == sorted(told, key=lambda card: card.start)
            else:
                answers.append(asked.answer)
                assert asked.answer == str(len(told))
                assert asked.needles == tuple(
                    i for i, c in enumerate(cards) if c.category == told[0].category
                )
    assert set(kinds) == {"retrieval", "ordering", "counting"}
    assert len(set(answers)) > 2


def test_cards_are_drawn_when_they_show_and_then_alone(folder):
    from natural_media import Media
    from needles_in_footage import make_haystack

    from bvllm_adapters.evaluation.needle import COLORS

    haystack = make_haystack(5, Media(folder), num_frames=24, style="insert")
    frames = list(haystack.render(range(24), 64))
    for card in haystack.needles:
        for second in card.seconds:
            assert frames[second][0, 0].tolist() == list(COLORS[card.color])
    empty = haystack.__class__(24, haystack.scenes, (), ())
    shown = {second for card in haystack.needles for second in card.seconds}
    for second, frame in enumerate(empty.render(range(24), 64)):
        assert np.array_equal(frame, frames[second]) != (second in shown)


def test_the_table_is_one_that_evaluate_reads(folder, tmp_path):
    from natural_media import Media
    from needles_in_footage import write_haystacks

    from bvllm_adapters.evaluation.table_questions import table_question
    from bvllm_adapters.tables.table import read_table

    file = write_haystacks(tmp_path, Media(folder), {20: 2})
    questions = [table_question(row, tmp_path) for row in read_table(file).rows]
    assert [len(question.options) for question in questions] == [4] * 6
    assert len(bvllm.read_video(questions[0].video).frames) == 20
    first, last = json.loads(file.read_text().splitlines()[0])["needles"][0]
    assert 0 <= first <= last < 20


def test_a_row_above_the_budget_or_that_failed_ends_the_run_by_name():
    from baselines import BUDGET, check_budget

    check_budget("top-k", [{"id": "a", "tokens": BUDGET}])
    with pytest.raises(RuntimeError, match=f"top-k: a: got {BUDGET + 1} visual tokens, wanted at"):
        check_budget("top-k", [{"id": "a", "tokens": BUDGET + 1}])
    with pytest.raises(RuntimeError, match="random: no such file"):
        check_budget("random", [{"error": "no such file"}])
    check_budget("no budget", [{"id": "a", "tokens": BUDGET + 1}])


def test_what_the_language_model_gets_is_counted_and_compared_with_the_traces():
    from baselines import check_budget, prompts_counted

    class Host(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(5, 8)
            self.language_model = torch.nn.Identity()
            self.language_model.forward = lambda inputs_embeds: inputs_embeds
            self.get_input_embeddings = lambda: self.words

    host = Host()
    words = host.words.weight.detach()
    with prompts_counted(host) as counts:
        for visual in (3, 0):
            host.language_model(inputs_embeds=torch.cat([words[:2], torch.randn(visual, 8)])[None])
            host.language_model(inputs_embeds=words[None, :1])  # a word of the answer
    host.language_model(inputs_embeds=words[None])  # no longer counted
    assert counts == [3, 0]
    row = {"id": "a", "tokens": 3}
    check_budget("top-k", [row], [3] * 4)
    with pytest.raises(RuntimeError, match="got 13 visual tokens in 4 prompts, the traces tell of"):
        check_budget("top-k", [row], [3, 3, 3, 4])


def test_videos_are_of_all_lengths_or_of_each():
    from argparse import Namespace

    from needles_in_footage import videos_of

    assert videos_of(Namespace(lengths=[30, 60], videos=[5])) == {30: 5, 60: 5}
    assert videos_of(Namespace(lengths=[30, 60], videos=[5, 2])) == {30: 5, 60: 2}
    with pytest.raises(ValueError, match="videos: got 3 numbers, wanted one, or 2 as lengths"):
        videos_of(Namespace(lengths=[30, 60], videos=[5, 2, 1]))


def test_recall_is_of_frames_that_have_a_token_left():
    from baselines import recall

    frames = [{"second": 3.0, "tokens": 4}, {"second": 8.0, "tokens": 0}]
    row = {"trace": {"frames": frames}, "columns": {"needles": [[2, 3], [8, 8]]}}
    assert recall(row) == 0.5


def test_all_methods_keep_the_budget_but_the_one_without():
    from footage_methods import METHODS, TRAINED, UNBOUND, choose_by, tokenizer_of_method

    config = bvllm.BalancedTokenizerConfig(
        vision_width=16, llm_width=24, num_frames=4, tokens_per_frame=4, max_tokens=10,
        qformer_width=16, qformer_layers=1, qformer_heads=2, frame_feature="mean",
    )  # fmt: skip
    torch.manual_seed(0)
    patches = torch.randn(12, 9, 16)
    seconds = torch.arange(12.0)
    video = bvllm.FrameFeatures(patches.mean(1), patches, seconds=seconds)
    glimpsed = bvllm.FrameFeatures(torch.rand(12, 768), patches, seconds=seconds)
    for method in METHODS:
        tokenizer = tokenizer_of_method(method if method in TRAINED else "learned", config).eval()
        choose_by(method, tokenizer)
        for budget in (10, 5, 1):
            seen = glimpsed if method == "coverage, by thumbnails" else video
            (tokens,) = tokenizer([seen], ["What is on the red card?"], max_tokens=budget)
            wanted = 48 if method == UNBOUND else budget
            assert len(tokens) == wanted if method not in ("learned",) else len(tokens) <= budget
            assert (tokens.frame.diff() >= 0).all()
            if method in ("ToMe over all", UNBOUND):
                assert tokens.size.sum() == 48  # nothing is lost


def test_shelves_show_four_things_and_are_asked_about_one(folder):
    from natural_media import Media
    from shelves_in_footage import PLACES, make_shelves

    haystack = make_shelves([3], Media(folder))
    assert haystack == make_shelves([3], Media(folder))
    assert len(haystack.questions) == 3
    for asked in haystack.questions:
        (number,) = asked.needles
        card, first = haystack.needles[number], number - number % 4
        shelf = haystack.needles[first : first + 4]
        assert asked.answer == card.category
        assert sorted(asked.options) == sorted(one.category for one in shelf)
        assert len(set(asked.options)) == 4 and len({one.start for one in shelf}) == 1
        place = list(PLACES)[number % 4]
        assert asked.text == f"What is at the {place} of the {card.color} card?"
        (frame,) = haystack.render([card.start], 64)
        left, top = (round(64 * part) for part in PLACES[place])
        (plain,) = haystack.__class__(60, haystack.scenes, (), ()).render([card.start], 64)
        assert not np.array_equal(frame[top : top + 32, left : left + 32],
                                  plain[top : top + 32, left : left + 32])  # fmt: skip
