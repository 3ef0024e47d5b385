"""Groups of near-duplicate texts, compared with a plain comparison of all pairs."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from rept.report.terminal import show_hits
from rept.results.near_duplicates import ALIKE, DEPTH, representatives
from rept.results.trace import Trace
from rept.utils.json_files import read_jsonl, write_jsonl
from tests.helpers.runs import WORDS, Shape, write_run
from tests.helpers.terminal import print_to


def all_pairs(texts: list[str]) -> list[int]:
    """The rule as documented, without any shortcut."""

    def runs(text: str) -> set[str]:
        text = " ".join(text.lower().split())[:4000]
        return {text[i : i + 5] for i in range(max(1, len(text) - 4))}

    found: list[int] = []
    for i, text in enumerate(texts):
        own = runs(text)
        likely = (j for j in range(i) if found[j] == j)
        alike = (j for j in likely if len(own & runs(texts[j])) >= ALIKE * len(own | runs(texts[j])))
        found.append(next(alike, i))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_a_comparison_of_all_pairs(seed: int) -> None:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(0, 30))) for _ in range(12)]
    for _ in range(60):  # variations of one another, with more and more words inserted
        words = rng.choice(texts).split()
        for _ in range(rng.randint(0, 4)):
            words.insert(rng.randint(0, len(words)), rng.choice(WORDS))
        texts.append(" ".join(words))
    found = representatives(texts)
    assert found == all_pairs(texts)
    assert 12 < len(set(found)) < len(texts)


def test_short_and_empty_texts() -> None:
    assert representatives([]) == []
    assert representatives(["", " ", "ab", "AB", "abc"]) == [0, 0, 2, 2, 4]


def test_texts_after_the_first_200_represent_themselves() -> None:
    found = representatives(["the same"] * (DEPTH + 3))
    assert found == [0] * DEPTH + [DEPTH, DEPTH + 1, DEPTH + 2]


def test_the_terminal_shows_one_line_per_group_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", Shape(hits=4, labels=()))
    lines = read_jsonl(run / "results.jsonl")
    for line in lines:
        line["group"] = {1: 1, 2: 2, 3: 1, 4: 1}[line["rank"]]
    write_jsonl(run / "results.jsonl", lines)
    stream = io.StringIO()
    print_to(stream, monkeypatch)
    show_hits(Trace(run), 0)
    table = [line.split("│")[1:5] for line in stream.getvalue().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row[:3]] for row in table] == [
        ["1", str(lines[0]["row"]), "3"],
        ["2", str(lines[1]["row"]), "1"],
    ]
