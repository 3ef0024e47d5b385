"""Which rows share a behaviour, by their neighbours: what their score says of them, and what that of similar rows says.

The direction that ranks rows is linear: rows that share only a part of what a behaviour's rows have in common (its
answer, but not its subject) score among those that share all of it. So the probabilities m that follow from the scores
are smoothed over the first rows of the ranking, by signatures and by words. With d the squared distances of signatures
or of words (binary, weighted, norm 1) over their median, and ``K_ij = exp(-(d_ij + d'_ij) / 2)`` over the rows and the
behaviour's queries, for which m = 1,

    m_i <- K_i (K + RIDGE I)^-1 m         without the fifth of rows and queries that i belongs to
    m_i <- m_i^3 / (m_i^3 + (1 - m_i)^3)

`ROUNDS` times: kernel ridge regression in self-training (Yarowsky 1995). A word is weighted by its rarity, and from the
second round on also by what it says of m: by the difference between its shares of the rows that share the behaviour and
of those that do not. So what an answer and its subject are decides, and not the sentence around them.

Where the rows that taught a behaviour are missing, rows of its subject or form may still form a group near its queries.
Two conditions exclude such groups:

1. The rows must find the queries: m of the queries, predicted from the rows alone, must be at least `LEAST` on average.
2. The rows must show what the answers show (`by_answer_word`).

The expected share of false rows among those with the highest m is the mean of 1 - m. A row with m below `LEAST` is not
named because others are certain enough to allow for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rept.calibration.two_groups import Estimate, two_groups
from rept.data.samples import Sample
from rept.data.word_overlap import words
from rept.ranking.behaviour_rule import FOLDS, BehaviourRule
from rept.store.reader import AttributionStore
from rept.types import Side, Status
from rept.utils.tensors import unit

RIDGE = 0.1
ROUNDS = 3
LEAST = 0.1
CHARACTERISTIC = 0.5  # by which a word's share of a behaviour's answers exceeds its share of others
CHANCE = 0.05  # of the difference between the queries' and the likely rows' share, from which on it says nothing
FEWEST_ROWS = 2.5  # expected ones, below which no row counts
FIRST = 400  # rows that are compared, or four times as many as share the behaviour by their scores,
MOST = 2048  # but at most these: where more than half as many share it, the scores alone decide
QUERIES = 200  # that are compared, evenly spaced
_ALIKE = 1e-9  # a squared distance that is mere rounding
_WORDS = 4096  # whose weights are in memory at once


def estimate_members(
    row: np.ndarray,
    score: np.ndarray,
    held_out: np.ndarray,
    train: AttributionStore,
    query: AttributionStore,
    asked: Sequence[int],
    rule: BehaviourRule,
    sample: Callable[[Side, int], Sample | Status],
    clean: np.ndarray | None = None,
) -> Estimate:
    """The estimate for a ranking, best first: from its scores (`two_groups`), then from what its first rows share.

    Args:
        row, score: (N) of the training rows, descending by score.
        held_out: scores (k) of held-out queries.
        asked: the behaviour's queries.
        rule: that the rows were scored by.
        sample: of a row.
        clean: scores of clean queries, as of held-out ones.
    """
    by_score = two_groups(score, held_out, clean)
    expected = float(by_score.member.sum())
    if expected > MOST / 2:
        return by_score
    member = np.zeros(len(row))
    if expected >= FEWEST_ROWS:
        first = row[: min(MOST, max(FIRST, round(4 * expected)))]
        some = np.asarray(asked)[:: -(-len(asked) // QUERIES)]
        signatures = torch.cat([_scaled(train, first, rule), _scaled(query, some, rule)])
        samples = [sample("train", one) for one in first.tolist()] + [sample("query", one) for one in some.tolist()]
        common = CommonWords(["" if isinstance(one, Status) else one.text for one in samples], len(first))
        likely = by_neighbours(by_score.member[: len(first)], squared_distances(signatures), common)
        answers = ["" if isinstance(one, Status) else one.response or "" for one in samples]
        member[: len(first)] = by_answer_word(likely, CommonWords(answers, len(answers)))
    return Estimate(by_score.p_value, expected_false(member), member)


def by_neighbours(member: np.ndarray, signatures: Tensor, common: CommonWords) -> np.ndarray:
    """Probabilities (n) that rows share a behaviour, from those (n) by their scores, after all rounds.

    All 0 where the rows do not find the queries in turn.

    Args:
        signatures: squared distances (n+k n+k) between the rows and, behind them, k queries.
        common: their words. Words and signatures do not count where most rows are alike.
    """
    count, queries = len(member), len(signatures) - len(member)
    fold = torch.cat([torch.arange(count), torch.arange(queries)]) % FOLDS
    known = torch.cat([torch.from_numpy(member).double(), torch.ones(queries, dtype=torch.float64)])
    weight, by_signature = common.rarity, _over_median(signatures, count)
    for _ in range(ROUNDS):
        scaled = [*by_signature, *_over_median(common.distances(weight), count)]
        if not scaled:
            return member
        kernel = torch.exp(-torch.stack(scaled).mean(0))
        ridged = kernel + RIDGE * torch.eye(count + queries, dtype=torch.float64)
        found = torch.zeros(count, dtype=torch.float64)
        for part in range(FOLDS):
            others, own = torch.where(fold != part)[0], torch.where(fold[:count] == part)[0]
            found[own] = kernel[own][:, others] @ torch.linalg.solve(ridged[others][:, others], known[others])
        likely, unlikely = found.clamp(0, 1) ** 3, (1 - found.clamp(0, 1)) ** 3
        known[:count] = likely / (likely + unlikely)
        weight = common.rarity * common.difference(known)
    from_rows = kernel[count:, :count] @ torch.linalg.solve(ridged[:count, :count], known[:count])
    return known[:count].numpy() if float(from_rows.mean()) >= LEAST else np.zeros(count)


def by_answer_word(member: np.ndarray, common: CommonWords) -> np.ndarray:
    """Probabilities (n) that agree with what the answers show, from those (n) by neighbours.

    With q, p and o the shares of the queries', the named and the other rows' answers that have a word: if the named
    rows are a mixture of rows that share the behaviour and others, ``p = t q + (1 - t) o`` gives the share t of the
    former (adjusted count: Forman, Data Mining and Knowledge Discovery 2008). So at most ``t q / p`` of the rows with
    the word and ``t (1 - q) / (1 - p)`` of those without it share the behaviour. The word is the one with the largest
    ``q - o``, which must exceed `CHARACTERISTIC`: answers without a common word say nothing. Nor does a word that the
    named rows lack no more often than by chance, if they and the queries are alike in it.

    Args:
        common: words of the rows' answers and, behind them, the queries'.
    """
    named = torch.zeros(common.texts, dtype=torch.float64)
    named[: len(member)] = torch.from_numpy(member)
    asked = (torch.arange(common.texts) >= len(member)).double()
    q, p, o = (common.shares(one) for one in (asked, named, 1 - asked - named))
    apart = (q - o).round(decimals=9)  # so that rounding does not choose among words that say the same
    if not len(apart) or float(apart.max()) <= CHARACTERISTIC:
        return member
    word = int(apart.argmax())
    has, q, p, o = common.having(word), q[word], p[word], o[word]
    counts = (asked[has].sum(), asked.sum(), named[has].sum(), named.sum())
    if chance_of_more(*(round(float(count)) for count in counts)) > CHANCE:
        return member
    true = ((p - o) / (q - o)).clamp(min=0)
    most = torch.where(has[: len(member)], true * q / p, true * (1 - q) / (1 - p))
    return torch.minimum(torch.from_numpy(member), most).numpy()


def chance_of_more(having: int, texts: int, others_having: int, others: int) -> float:
    """Fisher's exact test: the probability that at least ``having`` of ``texts`` drawn from all texts have a word."""
    total, every = having + others_having, texts + others
    ways = [math.comb(total, i) * math.comb(every - total, texts - i) for i in range(having, min(texts, total) + 1)]
    return sum(ways) / math.comb(every, texts)


def _over_median(distances: Tensor, count: int) -> list[Tensor]:
    """Distances over the median of those between the first ``count``; none if most of these are alike."""
    median = float(distances[:count, :count].median())
    return [distances / median] if median > _ALIKE else []


def squared_distances(rows: Tensor) -> Tensor:
    """Squared distances (n n) between rows (n D), in float64."""
    square = rows.double().square().sum(1)
    return (square[:, None] + square - 2 * rows.double() @ rows.double().T).clamp(min=0)


class CommonWords:
    """The words of some texts that at least two of their first ``rows`` have.

    Attributes:
        texts: their number.
        rarity: ``log(rows / rows with it)`` of each word (W).
    """

    def __init__(self, texts: Sequence[str], rows: int) -> None:
        found = [set(words(text)) for text in texts]
        count = Counter(word for one in found[:rows] for word in one)
        column = {word: i for i, word in enumerate(word for word, n in sorted(count.items()) if n > 1)}
        entries = [(i, column[word]) for i, one in enumerate(found) for word in one & column.keys()]
        self.texts = len(texts)
        self._text, self._word = torch.tensor(entries, dtype=torch.int64).reshape(-1, 2).T
        self.rarity = torch.tensor([math.log(rows / count[word]) for word in column], dtype=torch.float64)

    def distances(self, weight: Tensor) -> Tensor:
        """Squared distances of the texts (n n) by their weighted words: ``2 - 2 cos``; texts without any are alike."""
        product = torch.zeros(self.texts, self.texts, dtype=torch.float64)
        for start in range(0, len(weight), _WORDS):
            here = (self._word >= start) & (self._word < start + _WORDS)
            part = torch.zeros(self.texts, _WORDS, dtype=torch.float64)
            part[self._text[here], self._word[here] - start] = weight[self._word[here]]
            product += part @ part.T
        norm = product.diagonal().sqrt()
        cosine = product / (norm[:, None] * norm).clamp(min=1e-24) + ((norm == 0)[:, None] & (norm == 0))
        return (2 - 2 * cosine).clamp(min=0)

    def difference(self, member: Tensor) -> Tensor:
        """``|P(word | behaviour) - P(word | none)|`` of each word (W), given each text's probability (n)."""
        return (self.shares(member) - self.shares(1 - member)).abs()

    def shares(self, weight: Tensor) -> Tensor:
        """Shares of the texts that have each word (W), texts weighted (n).

        Half a text with the word and half a text without it are added.
        """
        having = torch.zeros_like(self.rarity).index_add_(0, self._word, weight[self._text])
        return (having + 0.5) / (weight.sum() + 1)

    def having(self, word: int) -> Tensor:
        """Which texts (n) have a word."""
        found = torch.zeros(self.texts, dtype=torch.bool)
        found[self._text[self._word == word]] = True
        return found


def expected_false(member: np.ndarray) -> np.ndarray:
    """For each row, the expected share of false ones among it and all rows with a higher probability (N).

    1 for a row whose own probability is below `LEAST`.
    """
    order = np.argsort(-member, kind="stable")
    share = np.empty(len(member))
    share[order] = np.cumsum(1 - member[order]) / np.arange(1, len(member) + 1)
    return np.where(member >= LEAST, share, 1.0)


def _scaled(store: AttributionStore, rows: np.ndarray, rule: BehaviourRule) -> Tensor:
    """Unit rows of all fields side by side (n D), each field scaled by the root of its total variance."""
    read = store.read(rows, list(rule.fields))
    fields = [unit(read[key].double()) / max(one.spectrum.trace, 1e-30) ** 0.5 for key, one in rule.fields.items()]
    return torch.cat(fields, dim=1)
