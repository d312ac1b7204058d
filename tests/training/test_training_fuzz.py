"""Configs and rows, damaged at random: what is read is what the file says, or an error names it.

Mutation i is the same on every run. `python -m pytest -m slow` tries the further ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROWS, talk

from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.conversations import RowError, parse
from bvllm_adapters.training.rows import Source, read_rows

QUICK, ALL = 150, 260
CONFIG = {
    "stage": "instruction",
    "model": "host",
    "data": [{"file": "a/rows.json"}, {"file": "b.jsonl", "media": "videos"}],
    "validation": [{"file": "c.json"}],
    "output": "runs/one",
    "learning_rate": 1e-3,
    "schedule": "linear",
    "global_batch": 256,
    "tokenizer": {"num_frames": 4, "max_tokens": 12},
    "lora": {"rank": 4, "targets": ["q_proj", "v_proj"]},
    "report_to": ["tensorboard"],
}
TALKS = [*ROWS, {"id": "s", "conversations": [{"from": "system", "value": "é"}, *talk("q", "a")]}]
PIECES = [
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\t", b"\n", b"\r", b'"', b"'", b"]", b"}", b": ", b", "),
    *(b"*a", b"&a ", b"!!python/object:os.system ", b"!!int x", b"<<: ", b"? [a]\n: 1\n", b"|"),
    *(b"--- \n", b"%YAML 9.9\n", b"2020-99-99", b"0x" + b"f" * 9000, b"- "),
    *(b"[" * 3000, b"{" * 3000, b'{"a":' * 3000, b"9" * 5000),
    *(b"-1", b"1e999", b"null", b"NaN", b"true", b"\\ud800", b"../../", b"http://x/"),
]


def mutated(text: bytes, seed: int) -> bytes:
    """One to three small damages."""
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 3)):
        text = damaged(text, draw)
    return text


def damaged(text: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(text) + 1)
    to = min(len(text), at + draw.choice([1, 2, 8, 40]))
    lines, piece = text.split(b"\n"), draw.choice(PIECES)
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    return draw.choice(
        [
            text[:at],
            text[:at] + text[to:],
            text[:at] + text[at:to] * 2 + text[to:],
            text[:at] + piece + text[at:],
            text[:at] + piece + text[to:],
            text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :],
            b"\n".join([*lines[:i], lines[j], *lines[i:]]),
            b"\n".join([*lines[:i], piece, *lines[i + 1 :]]),
            b"\n".join([*lines[:i], lines[i] + piece, *lines[i + 1 :]]),
        ]
    )


def tried(first: int, last: int, text: bytes, file: Path, read: Callable[[], Any]) -> int:
    """How many mutations were read as what they say; all others are errors that name the file."""
    same = 0
    for seed in range(first, last):
        file.write_bytes(mutated(text, seed))
        try:
            read()
            same += 1
        except ValueError as error:
            assert type(error) is ValueError, (seed, error)
            assert str(file) in str(error) or "data: got 0 rows" in str(error), (seed, error)
    return same


def read_config(file: Path) -> None:
    found = TrainingConfig.load(file)
    plain = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    assert found == TrainingConfig.from_dict(plain)
    assert TrainingConfig.from_dict(found.to_dict()) == found


def read_talks(file: Path) -> None:
    rows = read_rows([Source(file, Path("media"))])
    text = file.read_text(encoding="utf-8-sig")
    plain = None
    if file.suffix == ".json" or text.lstrip()[:1] == "[":
        plain = json.loads(text)
    if not isinstance(plain, list):
        plain = [json.loads(line) for line in text.split("\n") if line.strip()]
    good, bad = [], 0
    for raw in plain:
        try:
            good.append(parse(raw, Path("media"), ""))
        except RowError:
            bad += 1
    assert len(rows.malformed) == bad
    assert all(str(file) in told for told in rows.malformed)
    assert [(r.turns, r.media, r.system) for r in rows] == [
        (r.turns, r.media, r.system) for r in good
    ]


RANGES = [
    pytest.param(0, QUICK, id="quick"),
    pytest.param(QUICK, ALL, id="all", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("first", "last"), RANGES)
def test_configs(first: int, last: int, tmp_path: Path) -> None:
    text = yaml.safe_dump(TrainingConfig.from_dict(CONFIG).to_dict(), sort_keys=False).encode()
    same = tried(first, last, text, tmp_path / "c.yaml", lambda: read_config(tmp_path / "c.yaml"))
    assert 0 < same < last - first


@pytest.mark.parametrize(("first", "last"), RANGES)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows(name: str, first: int, last: int, tmp_path: Path) -> None:
    lines = [json.dumps(each, ensure_ascii=False) for each in TALKS]
    text = "\n".join(lines) if name == "rows.jsonl" else json.dumps(TALKS, indent=1)
    same = tried(first, last, text.encode(), tmp_path / name, lambda: read_talks(tmp_path / name))
    assert 0 < same < last - first
