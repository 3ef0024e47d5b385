"""Token scores of whole behaviours against a slow loop, and what they do not depend on."""

from __future__ import annotations

import json
from itertools import groupby, pairwise

import pytest
import torch

from rept.data.encoder import Encoded
from rept.run.distinctive_tokens import DistinctiveTokens
from rept.run.pipeline import attribute, prepare
from rept.run.token_pairs import score_pairs
from tests.helpers.oracle_scores import WordStates, distinctive_scores

LAYER = 2
BEHAVIOURS = [[0, 1, 2], [3]]
HITS = {0: [3, 4], 1: [4, 37], 2: [4, 16], 3: [3, 4]}  # row 3 is query 3
BACKGROUND = [1, 2, 3, 6, 7, 9, 10, 13, 29]
PAIRS = [(query, row) for query, rows in HITS.items() for row in rows]


@pytest.fixture(scope="module")
def job(material, tmp_path_factory):
    return prepare(material.config(tmp_path_factory.mktemp("words") / "run"))


def scores(job, tokens_per_batch: int = 256) -> dict[tuple[int, str, int], torch.Tensor]:
    job.datamodule.tokens_per_batch = tokens_per_batch
    scorer = DistinctiveTokens(job.model, job.extractor, job.datamodule, LAYER, BEHAVIOURS, HITS, BACKGROUND)
    found = score_pairs(job.model, job.extractor, job.datamodule, PAIRS, LAYER, scorer)
    return {(one.query, one.side, one.row): one.scores for one in found}


@pytest.fixture(scope="module")
def fast(job):
    return scores(job)


def read(job, side: str, row: int) -> WordStates:
    text = job.datamodule.encoded(side, row)
    assert isinstance(text, Encoded)
    ids = torch.tensor(text.input_ids)
    with torch.no_grad():
        states = job.model(ids[None], output_hidden_states=True).hidden_states[LAYER][0]
    words = [text.text[start:end] for start, end in text.pieces]
    return WordStates(ids, words, text.special, text.prompt_length, states.double().tolist())


def test_scores_equal_the_slow_loop_on_both_sides(job, fast):
    background = [read(job, "train", row) for row in BACKGROUND]
    standing_out = 0
    for queries in BEHAVIOURS:
        asked = [read(job, "query", query) for query in queries]
        rows = list(dict.fromkeys(row for place in range(2) for query in queries for row in [HITS[query][place]]))
        best = [read(job, "train", row) for row in rows]
        query, row = queries[0], HITS[queries[0]][0]
        for side, text, references in (("train", read(job, "train", row), asked), ("query", asked[0], best)):
            expected = torch.tensor(distinctive_scores(job.model, text, references, background))
            standing_out += int(expected.count_nonzero())
            torch.testing.assert_close(fast[query, side, row], expected, rtol=0, atol=1e-5)
    assert standing_out >= 20


def test_scores_do_not_depend_on_batches_and_padding(job, fast):
    for tokens_per_batch in (1, 2048):
        for key, other in scores(job, tokens_per_batch).items():
            torch.testing.assert_close(fast[key], other, rtol=0, atol=1e-5)


def test_a_row_has_the_same_scores_for_all_queries_of_a_behaviour(fast):
    assert torch.equal(fast[0, "train", 4], fast[1, "train", 4])
    assert not torch.equal(fast[0, "train", 3], fast[3, "train", 3])


def test_scores_are_shares_of_the_highest_possible_and_special_tokens_have_none(job, fast):
    for (query, side, row), one in fast.items():
        special = torch.tensor(job.datamodule.encoded(side, row if side == "train" else query).special)
        assert one.min() >= 0 and one.max() <= 1 and not one[special].any()


def test_references_are_spread_over_the_behaviour_and_hits_come_in_turn(job):
    behaviours, hits = [list(range(50)), [50]], {query: [query % 7, 10 + query] for query in range(51)}
    scorer = DistinctiveTokens(job.model, job.extractor, job.datamodule, LAYER, behaviours, hits, BACKGROUND)
    queries = scorer.references(0, "train")
    assert len(queries) == 20 and queries[0] == 0 and queries[-1] == 47
    rows = scorer.references(0, "query")
    assert len(rows) == 20 and rows[:7] == [0, 2, 5, 3, 1, 6, 4] and rows[7] == 10
    assert scorer.references(1, "train") == [50] and scorer.references(1, "query") == [1, 60]


def test_a_query_in_two_behaviours_is_scored_for_the_first_and_the_run_says_so(material, job, tmp_path, capsys):
    scorer = DistinctiveTokens(job.model, job.extractor, job.datamodule, LAYER, [[0, 1], [1, 2]], HITS, BACKGROUND)
    assert [scorer.number[query] for query in (0, 1, 2)] == [0, 0, 1]
    assert scorer.references(0, "train") == [0, 1] and scorer.references(1, "train") == [1, 2]
    (tmp_path / "groups.json").write_text('{"one": [0, 1], "two": [1, 2]}')
    found = attribute(material.config(tmp_path / "run", f"behaviours={tmp_path}/groups.json"), show_result=False)
    assert found.tokens(1, found.hits(1)[0].row)["train"].references == 2
    assert "1 query in several behaviours of" in " ".join(capsys.readouterr().out.split())


def test_turns_of_the_user_between_responses_have_no_scores(material, tmp_path):
    rows = [
        [one["prompt"], one["response"], two["prompt"], two["response"]]
        for one, two in pairwise(material.rows[24:29] + material.rows[30:36])
    ]
    roles = ("user", "assistant", "user", "assistant")
    for name, part in (("train", rows), ("queries", rows[:3])):
        lines = [{"messages": [{"role": r, "content": c} for r, c in zip(roles, row, strict=True)]} for row in part]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = (f"datamodule.train={tmp_path}/train.jsonl", f"datamodule.queries={tmp_path}/queries.jsonl")
    found = attribute(material.config(tmp_path / "run", "datamodule.targets=all", *files), show_result=False)
    responses = 0
    for query in range(3):
        scored = found.tokens(query, found.hits(query)[0].row)["query"]
        scores = zip(scored.special, scored.scores, strict=True)
        of_turn = [[value for _, value in run] for special, run in groupby(scores, lambda one: one[0]) if not special]
        assert len(of_turn) == 4 and not any(of_turn[2])
        responses += sum(value > 0 for turn in (1, 3) for value in of_turn[turn])
    assert responses >= 3
