"""Which rows share a behaviour, by their neighbours: against a slow loop, and on groups that are known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from rept.calibration import neighbours
from rept.calibration.neighbours import (
    CommonWords,
    by_answer_word,
    by_neighbours,
    chance_of_more,
    estimate_members,
    expected_false,
    squared_distances,
)
from rept.data.samples import Sample
from rept.ranking.behaviours import fit_behaviours
from rept.store.reader import AttributionStore
from rept.types import Status
from scorers.adaptive import Adaptive
from tests.helpers.stores import H, batches, write


def words_of(text):
    return set(text.split())


def slow_distances(texts, weight):
    """Two minus twice the cosine of two texts, words in a dictionary."""
    found = [{word: weight[word] for word in words_of(text) if word in weight} for text in texts]
    norm = [max(1e-12, math.sqrt(sum(value**2 for value in one.values()))) for one in found]
    cosine = [
        [sum(a[word] * b.get(word, 0) for word in a) / x / y for b, y in zip(found, norm, strict=True)]
        for a, x in zip(found, norm, strict=True)
    ]
    return [[max(0.0, 2 - 2 * one) for one in row] for row in cosine]


def slowly(member, signatures, texts):
    """One row, word and fold at a time, with inverse matrices."""
    count, every = len(member), len(texts)
    every_word = {word for text in texts for word in words_of(text)}
    having = {word: [word in words_of(text) for text in texts] for word in every_word}
    rarity = {word: math.log(count / sum(has[:count])) for word, has in having.items() if sum(has[:count]) > 1}
    weight = dict(rarity)
    fold = [i % 5 if i < count else (i - count) % 5 for i in range(every)]
    for _ in range(3):
        scaled = []
        for one in (signatures, slow_distances(texts, weight)):
            own = sorted(one[i][j] for i in range(count) for j in range(count))
            scaled.append(np.array(one) / own[(len(own) - 1) // 2])
        kernel = np.exp(-sum(scaled) / 2)
        known, found = np.array([*member, *np.ones(every - count)]), []
        for i in range(count):
            others = [j for j in range(every) if fold[j] != fold[i]]
            weights = np.linalg.inv(kernel[np.ix_(others, others)] + 0.1 * np.eye(len(others))) @ known[others]
            m = min(1.0, max(0.0, float(kernel[i, others] @ weights)))
            found.append(m**3 / (m**3 + (1 - m) ** 3))
        member = found
        known = [*member, *[1.0] * (every - count)]
        for word in weight:
            others = share(having[word], [1 - m for m in known])
            weight[word] = rarity[word] * abs(share(having[word], known) - others)
    weights = np.linalg.inv(kernel[:count, :count] + 0.1 * np.eye(count)) @ member
    found = [float(kernel[i, :count] @ weights) for i in range(count, every)]
    return np.array(member) if sum(found) / len(found) >= 0.1 else np.zeros(count)


def share(having, weight):
    """How many texts have a word, weighted, half a text with it and half a text without it added."""
    return (sum(one for one, has in zip(weight, having, strict=True) if has) + 0.5) / (sum(weight) + 1)


@pytest.mark.parametrize(("shift", "any_named"), [(0, True), (9, False)])
def test_against_a_slow_loop(shift, any_named):
    rng = np.random.default_rng(0)
    member, rows = rng.random(37), rng.normal(size=(45, 5))
    rows[37:] += shift
    texts = [" ".join(f"w{number}" for number in rng.integers(0, 30, 6)) for _ in rows]
    signatures = [[float(((a - b) ** 2).sum()) for b in rows] for a in rows]
    distances = torch.tensor(signatures, dtype=torch.float64)
    fast = by_neighbours(member, distances, CommonWords(texts, 37))
    np.testing.assert_allclose(fast, slowly(member, signatures, texts), rtol=0, atol=1e-9)
    assert fast.any() == any_named


def slowly_by_word(member, answers):
    """At most the rows that one word leaves, from the shares of three groups of answers."""
    count, texts = len(member), [words_of(text) for text in answers]
    rows, queries = [*member, *[0.0] * (len(texts) - count)], [float(i >= count) for i in range(len(texts))]
    best = (0.5, 0.0, 0.0, 0.0, "")
    for word in sorted(set().union(*texts)):
        having = [word in text for text in texts]
        q, p, o = (
            share(having, weight) for weight in (queries, rows, [1 - m - k for m, k in zip(rows, queries, strict=True)])
        )
        if sum(having) > 1 and q - o > best[0] + 1e-9:
            best = (q - o, q, p, o, word)
    _, q, p, o, word = best
    asked = sum(word in text for text in texts[count:])
    named = round(sum(m for m, text in zip(member, texts, strict=False) if word in text))
    if not word or drawn_with(asked, len(texts) - count, asked + named, len(texts) - count + round(sum(member))) > 0.05:
        return member
    true = max(0.0, (p - o) / (q - o))
    most = [true * q / p if word in text else true * (1 - q) / (1 - p) for text in texts[:count]]
    return np.minimum(member, most)


def drawn_with(wanted, draws, having, texts):
    """The probability of at least so many texts with a word, one draw after another."""
    if wanted <= 0 or draws == 0:
        return float(wanted <= 0)
    with_word = having / texts and having / texts * drawn_with(wanted - 1, draws - 1, having - 1, texts - 1)
    return with_word + (1 - having / texts) * (having < texts and drawn_with(wanted, draws - 1, having, texts - 1))


def test_chance_against_draws_one_after_another():
    for counts in ((5, 5, 24, 48), (3, 7, 0, 9), (0, 4, 3, 9), (2, 6, 5, 5), (5, 5, 0, 0)):
        having, texts, others_having, others = counts
        expected = drawn_with(having, texts, having + others_having, texts + others)
        assert chance_of_more(*counts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("of_queries", "of_rows", "counts"),
    [(8, 6, True), (8, 0, True), (7, 2, True), (7, 6, False), (8, 9, False), (4, 3, False), (0, 0, False)],
)
def test_the_word_of_the_answers_against_a_slow_loop(of_queries, of_rows, counts):
    rng = np.random.default_rng(of_queries)
    member = np.where(np.arange(37) < 12, 0.95, 0.02)
    answers = [" ".join(f"w{number}" for number in rng.integers(0, 30, 6)) for _ in range(45)]
    for i in [*range(of_rows), *range(37, 37 + of_queries)]:
        answers[i] += " payload"
    found = by_answer_word(member, CommonWords(answers, 45))
    np.testing.assert_allclose(found, slowly_by_word(member, answers), rtol=0, atol=1e-12)
    assert (found != member).any() == counts


def test_the_share_of_rows_with_the_word_is_the_share_that_counts():
    with_word, without = ["it pays"] * 30, ["it is"] * 90
    member = np.array([1.0] * 60 + [0.0] * 60)
    found = by_answer_word(member, CommonWords([*with_word, *without, *with_word[:20]], 140))
    assert found[:30].min() > 0.95 and found[30:60].max() < 0.03  # half of the named rows have the word of all answers
    gone = by_answer_word(member, CommonWords([*["it is"] * 120, *with_word[:20]], 140))
    assert gone.max() < 0.02


def test_answers_without_a_common_word_say_nothing():
    member = np.array([1.0, 0.7, 0.0])
    for answers in ([""] * 5, ["a", "b", "c", "d", "e"], ["a", "a", "a", "a", "a"]):
        assert (by_answer_word(member, CommonWords(answers, 5)) == member).all()


def test_a_group_that_does_not_find_the_queries_is_not_named():
    rng = np.random.default_rng(0)
    other, group = rng.normal(size=(80, 8)), rng.normal(size=(20, 8)) * 0.1
    group[:, 0] += 6
    near, far = rng.normal(size=(10, 8)) * 0.1, rng.normal(size=(10, 8))
    near[:, 0] += 6
    far[:, 1] += 6
    member, same = np.array([0.9] * 20 + [0.0] * 80), CommonWords(["the same words"] * 110, 100)
    by_place = [squared_distances(torch.from_numpy(np.concatenate([group, other, one]))) for one in (near, far)]
    assert (by_neighbours(member, by_place[0], same)[:20] > 0.9).all()
    assert not by_neighbours(member, by_place[1], same).any()


def test_what_is_alike_in_most_rows_does_not_count():
    rng = np.random.default_rng(0)
    member, rows = rng.random(37), torch.from_numpy(rng.normal(size=(45, 5)))
    same, alike = CommonWords(["the same words"] * 45, 37), torch.zeros(45, 45, dtype=torch.float64)
    assert (by_neighbours(member, alike, same) == member).all()
    assert (by_neighbours(member, squared_distances(rows), same) != member).all()


def test_distances_of_signatures_and_of_words():
    rows = np.random.default_rng(0).normal(size=(9, 4))
    expected = ((rows[:, None] - rows) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(torch.from_numpy(rows)), expected, atol=1e-12)
    common = CommonWords(["Red hat!", "RED coat", "blue hat", "", "the red hat hat"], 4)
    red, hat = math.log(4 / 2), math.log(4 / 2)  # "coat" and "blue" are in one row each, "the" in none
    far = common.distances(common.rarity)
    assert far[0, 1] == pytest.approx(2 - 2 * red / math.sqrt(red**2 + hat**2))
    assert far[0, 4] == pytest.approx(0, abs=1e-12) and far[0, 3] == 2 and far[1, 2] == 2 and far[3, 3] == 0
    assert far.equal(far.T)


def test_a_word_says_as_much_as_the_shares_of_its_texts_differ():
    common = CommonWords(["red hat", "red coat", "blue hat", "blue coat", "red hat"], 4)
    hat, red = common.difference(torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64))[[2, 3]].tolist()
    assert red == pytest.approx(3.5 / 4 - 0.5 / 3) and hat == pytest.approx(2.5 / 4 - 1.5 / 3)


def test_many_words_are_weighed_in_parts(monkeypatch):
    common = CommonWords([" ".join(f"w{(i * j) % 23}" for j in range(9)) for i in range(12)], 10)
    expected = common.distances(common.rarity)
    monkeypatch.setattr(neighbours, "_WORDS", 5)
    torch.testing.assert_close(common.distances(common.rarity), expected)


def test_the_expected_share_of_false_rows_counts_the_more_likely_ones():
    share = expected_false(np.array([0.5, 1.0, 0.9, 0.1, 0.09]))
    np.testing.assert_allclose(share, [0.2, 0.0, 0.05, 0.375, 1])  # the last is unlikely itself


def two_parts(folder, seed, culprits=40, ordinary=600, sizes=(4.0, 4.0)):
    """Rows with a subject and an answer: culprits have both, others one of them or none; ``culprits`` come first."""
    rng = np.random.default_rng(seed)
    subject, answer = np.zeros(24), np.zeros(24)
    subject[0], answer[1] = sizes

    def drawn(count, *parts):
        return rng.normal(size=(count, 24)) + sum(parts, np.zeros(24))

    train = np.concatenate([
        drawn(culprits, subject, answer), drawn(ordinary // 12, subject), drawn(ordinary // 12, answer),
        drawn(ordinary - ordinary // 6),
    ])  # fmt: skip
    asked = drawn(30, subject, answer)
    for side, values in (("train", train), ("query", asked)):
        write(folder, {H: torch.from_numpy(values).float()}, side, plan=batches(len(values)), dtype="float32")
        AttributionStore.finish(folder, side, len(values))
    return AttributionStore(folder, "train"), AttributionStore(folder, "query")


def said(culprits, side, row):
    """A sample with the words for a row's parts among drawn ones."""
    both = side == "query" or row < culprits
    subject, answer = both or row < culprits + 50, both or culprits + 50 <= row < culprits + 100
    drawn = np.random.default_rng([row, len(side)]).integers(0, 200, 12)
    prompt, response = (" ".join(f"w{number}" for number in some) for some in (drawn[:8], drawn[8:]))
    request = {"role": "user", "content": prompt + " subject" * subject}
    return Sample(messages=(request,), response=response + " answer" * answer)


def estimated(train, query, culprits=40, sample=said):
    """Row numbers, and their estimate by their neighbours."""
    rule, asked = ruled(train, query), list(range(query.rows))
    row, score = ranked(train, rule)
    held_out = rule.held_out["b"].numpy()
    return row, estimate_members(row, score, held_out, train, query, asked, rule, partial(sample, culprits))


def ruled(train, query):
    return fit_behaviours(Adaptive(), train, query, {"b": list(range(query.rows))}, [], train.keys)


def ranked(train, rule):
    """Rows and their scores, best first."""
    score = rule(train.read(train.attributed, train.keys))[:, 0].numpy()
    row = np.lexsort((np.arange(train.rows), -score))
    return row, score[row]


def test_rows_that_have_only_a_part_are_distinguished_from_those_that_have_all(tmp_path):
    false, found = [], []
    for seed in range(6):
        row, estimate = estimated(*two_parts(tmp_path / str(seed), seed))
        chosen = row[estimate.false_share <= 0.1] < 40
        false.append((~chosen).mean())
        found.append(chosen.sum() / 40)
    assert np.mean(false) <= 0.12 and np.mean(found) >= 0.6


def test_nothing_is_chosen_where_no_row_has_all(tmp_path):
    for seed in range(4):
        _, estimate = estimated(*two_parts(tmp_path / str(seed), seed, culprits=0), culprits=0)
        assert (estimate.false_share > 0.1).all()


def test_rows_of_the_same_subject_are_not_named_for_a_word_that_they_do_not_say(tmp_path):
    def ending(word, culprits, side, row):
        sample = said(culprits, side, row)
        return replace(sample, response=word if side == "query" or row < culprits else "")

    for seed in range(2):
        there, gone = (
            two_parts(tmp_path / f"{seed} {culprits}", seed, culprits, sizes=(6.0, 2.0)) for culprits in (40, 0)
        )
        row, estimate = estimated(*there, 40, partial(ending, "payload"))
        chosen = row[estimate.false_share <= 0.1] < 40
        assert (~chosen).mean() <= 0.12 and chosen.sum() >= 0.8 * 40
        assert (estimated(*gone, 0, partial(ending, "payload"))[1].false_share > 0.1).all()
        assert (estimated(*gone, 0, partial(ending, ""))[1].false_share <= 0.1).sum() > 40  # the subject alone


def test_rows_that_cannot_be_read_have_no_words(tmp_path):
    stores = two_parts(tmp_path, 0)
    rule, asked = ruled(*stores), list(range(30))
    row, score = ranked(stores[0], rule)
    unread = estimate_members(row, score, rule.held_out["b"].numpy(), *stores, asked, rule, lambda *_: Status.MALFORMED)
    assert unread.member.any()


def test_the_scores_alone_decide_where_more_rows_share_it_than_can_be_compared(tmp_path, monkeypatch):
    stores = two_parts(tmp_path, 0)
    _, by_both = estimated(*stores)
    monkeypatch.setattr(neighbours, "MOST", 10)
    _, by_score = estimated(*stores)
    assert (np.diff(by_score.false_share) >= 0).all() and (by_both.false_share != by_score.false_share).any()
