"""Measures against scikit-learn, torchmetrics and plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_score, recall_score
from torchmetrics.functional.retrieval import retrieval_r_precision, retrieval_reciprocal_rank

from rept.ranking import metrics
from rept.ranking.metrics import CUTOFFS, measures, token_average_precision, token_measures


def world(rows=300, queries=12, labels=("a", "b", "c"), seed=0):
    """Scores (Q N) of which half are negative, no two equal, and labels of both sides."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(rows * queries).reshape(queries, rows).astype(np.float32) - rows * queries / 2
    return scores, [labels[i % len(labels)] for i in range(queries)], rng.choice(labels, rows).tolist()


def reader(scores, order=None):
    order = np.arange(scores.shape[1]) if order is None else order
    return lambda query: (order, scores[query][order])


def test_against_scikit_learn_and_torchmetrics():
    scores, query_labels, train_labels = world()
    got = measures(reader(scores), query_labels, train_labels)["overall"]
    expected = {name: [] for name in got}
    for query, label in enumerate(query_labels):
        relevant = np.array([other == label for other in train_labels])
        # Ranks as scores: torchmetrics drops what is not positive.
        rank_score = torch.from_numpy(scores[query].argsort().argsort().astype(np.float64) + 1)
        target = torch.from_numpy(relevant)
        for k in CUTOFFS:
            predicted = scores[query] >= np.sort(scores[query])[-k]
            expected[f"precision@{k}"].append(precision_score(relevant, predicted))
            expected[f"recall@{k}"].append(recall_score(relevant, predicted))
        expected["average_precision"].append(average_precision_score(relevant, scores[query]))
        expected["r_precision"].append(retrieval_r_precision(rank_score, target).item())
        expected["reciprocal_rank"].append(retrieval_reciprocal_rank(rank_score, target).item())
    assert {name for name in expected if name.startswith("precision")} == {f"precision@{k}" for k in (10, 50, 100)}
    for name, values in expected.items():
        if values:
            assert got[name] == pytest.approx(np.mean(values), abs=1e-6), name


@pytest.mark.parametrize("k", CUTOFFS)
def test_pooled_average_precision_is_that_of_one_list_of_all_hits(k):
    scores, query_labels, train_labels = world(seed=1)
    pool_relevant, pool_scores = [], []
    for query, label in enumerate(query_labels):
        for row in np.argsort(-scores[query])[:k]:
            pool_relevant.append(train_labels[row] == label)
            pool_scores.append(scores[query, row])
    got = measures(reader(scores), query_labels, train_labels)["overall"]
    assert got[f"pooled_average_precision@{k}"] == pytest.approx(average_precision_score(pool_relevant, pool_scores))
    assert got[f"pooled_average_precision@{k}"] != pytest.approx(got["average_precision"], abs=1e-3)


def test_equal_scores_are_pooled_by_rank_and_then_by_query():
    scores = np.array([[3.0, 1.0, 2.0], [3.0, 2.0, 2.0]], np.float32)
    got = measures(reader(scores), ["a", "b"], ["b", "a", "b"])["overall"]
    # In the pool: no, yes (3, both at the first rank); no, no (2, at the second), yes (2, at the third); yes (1).
    assert got["pooled_average_precision@10"] == pytest.approx(np.mean([1 / 2, 2 / 5, 3 / 6]))


def test_each_label_is_measured_over_its_own_queries():
    scores, query_labels, train_labels = world()
    both = measures(reader(scores), query_labels, train_labels)
    for label in "abc":
        alone = [other if other == label else None for other in query_labels]
        assert both["labels"][label] == measures(reader(scores), alone, train_labels)["overall"]
    means = [both["labels"][label]["average_precision"] for label in "abc"]
    assert both["overall"]["average_precision"] == pytest.approx(np.mean(means))


def test_rows_that_are_the_query_itself_count_in_measures_with_same_alone():
    scores, query_labels, train_labels = world()
    same = {0: [int(scores[0].argmax()), int(scores[0].argmin())], 5: [17]}
    got = measures(reader(scores), query_labels, train_labels, same)
    assert got["with_same"] == {
        k: v for k, v in measures(reader(scores), query_labels, train_labels).items() if k != "with_same"
    }
    for query, label in enumerate(query_labels):
        rows = np.setdiff1d(np.arange(scores.shape[1]), same.get(query, []))
        relevant = np.array(train_labels)[rows] == label
        expected = average_precision_score(relevant, scores[query][rows])
        assert got["queries"]["average_precision"][query] == pytest.approx(expected, abs=1e-6)
    assert got["overall"]["average_precision"] != got["with_same"]["overall"]["average_precision"]
    assert list(got["labels"]) == list(got["with_same"]["labels"])


def test_a_query_whose_only_relevant_row_is_itself_has_no_measure():
    got = measures(reader(np.array([[3.0, 2.0, 1.0]], np.float32)), ["a"], ["a", "b", "b"], {0: [0]})
    assert (got["overall"]["queries"], got["overall"]["without_relevant"]) == (0, 1)
    assert got["with_same"]["overall"]["average_precision"] == 1


def test_ties_rank_by_row_number_in_whatever_order_rows_come():
    scores = np.zeros((1, 6), np.float32)
    train_labels = ["b", "b", "a", "b", "a", "b"]  # relevant at the ranks 3 and 5
    for order in (np.arange(6), np.array([5, 2, 0, 4, 1, 3])):
        got = measures(reader(scores, order), ["a"], train_labels)["overall"]
        assert got["reciprocal_rank"] == pytest.approx(1 / 3)
        assert got["average_precision"] == pytest.approx((1 / 3 + 2 / 5) / 2)


def test_fewer_rows_than_k():
    got = measures(reader(np.array([[3.0, 2.0, 1.0]], np.float32)), ["a"], ["a", "b", "a"])["overall"]
    assert got["precision@10"] == pytest.approx(2 / 3)
    assert got["recall@100"] == 1


def test_rows_set_aside_are_no_part_of_the_ranking():
    kept = np.array([0, 2])  # row 1 could not be attributed
    got = measures(lambda _: (kept, np.array([1.0, 2.0], np.float32)), ["a"], ["a", "a", "b"])["overall"]
    assert got["recall@10"] == 1 and got["reciprocal_rank"] == 0.5


def test_nothing_is_invented_without_labels():
    scores, query_labels, train_labels = world()
    assert measures(reader(scores), [None] * len(query_labels), train_labels) == {}
    assert measures(reader(scores), query_labels, [None] * len(train_labels)) == {}


def test_a_label_that_no_row_has_is_counted_and_not_measured():
    scores, _, train_labels = world(queries=3)
    got = measures(reader(scores), ["a", "new", None], train_labels)
    assert got["labels"]["new"] == {"queries": 0, "without_relevant": 1}
    assert got["overall"]["queries"] == 1 and got["overall"]["without_relevant"] == 1
    assert got["overall"]["average_precision"] == got["labels"]["a"]["average_precision"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_measures_are_what_a_loop_over_the_ranking_gives(tokens):
    scores = np.array([[float(score) for score, _ in tokens]], np.float32)
    labels = ["a" if relevant else "b" for _, relevant in tokens]
    ranking = sorted(range(len(tokens)), key=lambda row: (-scores[0, row], row))
    seen, precisions = 0, []
    for rank, row in enumerate(ranking, start=1):
        if labels[row] == "a":
            seen += 1
            precisions.append(seen / rank)
    got = measures(reader(scores), ["a"], labels)["overall"]
    if not precisions:
        assert "average_precision" not in got
    else:
        assert got["average_precision"] == pytest.approx(np.mean(precisions))
        top = ranking[:10]
        assert got["precision@10"] == pytest.approx(sum(labels[row] == "a" for row in top) / len(top))


def test_token_average_precision():
    rng = np.random.default_rng(0)
    scores, marked = rng.normal(size=50) * 1e-6, rng.random(50) < 0.2
    assert token_average_precision(scores, marked) == pytest.approx(average_precision_score(marked, scores))
    assert token_average_precision([1.0, 2.0], [False, False]) is None


def test_token_measures_of_triggers_in_the_prompt_and_payloads_in_the_response():
    scores = [0.3, 0.9, 0.1, 0.8, 0.7]
    measured = token_measures(scores, ["trigger", None, "payload", "trigger", "payload"], [False] * 3 + [True] * 2)
    assert measured["token_average_precision_prompt"] == pytest.approx(1 / 2)  # second of three
    assert measured["token_average_precision_response"] == pytest.approx(1 / 2)  # second of two
    assert measured["token_average_precision"] == token_average_precision(scores, [True, False, True, True, True])
    assert token_measures([1.0, 2.0], [None, "payload"], [False, True])["token_average_precision_prompt"] is None


def test_equal_scores_of_several_queries_are_pooled_by_their_rank_then_by_query():
    equal = np.ones(2)
    first = metrics.Judged(np.array([3]), 3, equal, np.array([False, False]))
    second = metrics.Judged(np.array([1]), 3, equal, np.array([True, False]))
    assert metrics.pooled_average_precision([first, second], 10) == 1 / 2  # second of four
    assert metrics.pooled_average_precision([second, first], 10) == 1
