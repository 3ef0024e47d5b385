"""Token scores of the form `distinctive`: what the formulas need from the model, for whole behaviours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoded
from rept.model.hooks import record
from rept.model.masking import Maskable, masking_effects
from rept.model.placement import input_device
from rept.ranking.distinctive_words import Answer, Reference, prompt_scores, rarity, response_scores
from rept.signatures.extractor import ReadsAllPositions
from rept.types import SIDES, Batch, PreTrainedModel, Side, Status

BACKGROUND = 300  # training rows, drawn with the run's seed, that every text is compared with
REFERENCES = 20  # texts of a behaviour that scores are a mean over, at most


@dataclass(eq=False)
class DistinctiveTokens:
    """Scores texts for behaviours: a training row is compared with the behaviour's queries, a query with its best hits.

    Memory: the states of the background's responses.
    """

    model: PreTrainedModel
    extractor: ReadsAllPositions  # its first site is read
    datamodule: AttributionDataModule
    layer: int  # from 1
    behaviours: Sequence[Sequence[int]]  # the queries of each; of a query in several, the first one counts
    hits: Mapping[int, Sequence[int]]  # the row numbers of each query's best hits, best first
    background: Sequence[int]  # drawn training rows

    def __post_init__(self) -> None:
        numbered = reversed(list(enumerate(self.behaviours)))
        self.number = {query: number for number, queries in numbered for query in queries}
        self._words: dict[str, int] = {}
        self._encoded = lru_cache(maxsize=1024)(self.datamodule.encoded)
        self._references: dict[tuple[int, Side], list[Reference]] = {}
        self._known: dict[tuple[int, Side, int], Tensor] = {}  # by behaviour and text
        self._background = self._measured(self.background)

    def references(self, behaviour: int, side: Side) -> list[int]:
        """What texts of a side are compared with: training rows with some queries, queries with these queries' hits.

        The queries are evenly spaced, and their best hits are taken in turn.
        """
        queries = self.behaviours[behaviour]
        step = max(1.0, len(queries) / REFERENCES)
        asked = [queries[int(i * step)] for i in range(min(len(queries), REFERENCES))]
        if side == "train":
            return asked
        in_turn = (row for rows in zip_longest(*(self.hits[query] for query in asked)) for row in rows)
        return list(dict.fromkeys(row for row in in_turn if row is not None))[:REFERENCES]

    def prepare(self, queries: Iterable[int]) -> None:
        """Reads the references of these queries' behaviours, and forgets those of all others and all scores.

        A group of queries starts without scores, so that it makes no difference which rank scored the group before.
        """
        wanted = [(self.number[query], side) for query in queries for side in SIDES]
        missing = [one for one in dict.fromkeys(wanted) if one not in self._references]
        self._references = {one: found for one, found in self._references.items() if one in wanted}
        self._known = {}
        answers: list[list[Answer]] = []
        for behaviour, side in missing:
            rows, other = self.references(behaviour, side), SIDES[side == "query"]
            batches = self.datamodule.batches(other, rows)
            states = {row: own for batch in batches for row, own in self._states_of(batch)}
            answers.append([self._answer(other, row, states[row]) for row in rows])
        if missing:
            self._references |= zip(missing, self._compared(answers), strict=True)

    def score(self, side: Side, texts: Mapping[int, Tensor], queries: Mapping[int, Sequence[int]]) -> None:
        """Scores texts of one side for behaviours, each once; `scores` returns them.

        Args:
            texts: representations (T D) by row.
            queries: by row, those for whose behaviours to score it.
        """
        jobs = sorted({(row, self.number[query]) for row in texts for query in queries[row]})
        answers = {row: self._answer(side, row, texts[row]) for row, _ in jobs}
        responses = [self._response(side, row, number, answers[row]) for row, number in jobs]
        masked = [self._maskable(self._text(side, row), one) for (row, _), one in zip(jobs, responses, strict=True)]
        # The copies of each text by themselves: what else this rank scores changes no bit, and nothing is padded.
        limit = self.datamodule.tokens_per_batch
        effects = [masking_effects(self.model, [one], self._fill, limit)[0] for one in masked]
        for (row, number), response, one, effect in zip(jobs, responses, masked, effects, strict=True):
            answer, special = answers[row], torch.tensor(self._text(side, row).special)[: -len(response)]
            every = torch.zeros(len(special)).index_put((torch.tensor(one.positions, dtype=torch.int64),), effect)
            rare = self._rarity(answer.asked, self._asked)
            prompt = prompt_scores(answer, self._references[number, side], rare, special, every, response.max())
            self._known[number, side, row] = torch.cat([prompt, response])

    def scores(self, query: int, side: Side, row: int) -> Tensor:
        """The scores (T) of a text that `score` was called with, for the query's behaviour."""
        return self._known[self.number[query], side, row]

    def _response(self, side: Side, row: int, number: int, answer: Answer) -> Tensor:
        text, start = self._text(side, row), len(answer.asked)
        other = ~torch.tensor(text.response[start:]) | torch.tensor(text.special[start:])  # also the turns between
        return response_scores(answer, self._references[number, side], self._rarity(answer.said, self._said), other)

    def _maskable(self, text: Encoded, response: Tensor) -> Maskable:
        weights = torch.cat([torch.zeros(text.prompt_length), response / response.sum().clamp_min(1e-9)])
        own = [i for i in range(text.prompt_length) if not text.special[i]]
        return Maskable(torch.tensor(text.input_ids), weights, own)

    def _text(self, side: Side, row: int) -> Encoded:
        text = self._encoded(side, row)
        assert not isinstance(text, Status)  # only attributed rows are ranked and drawn
        return text

    def _numbers(self, side: Side, row: int) -> tuple[list[int], list[int]]:
        """The words of a text's tokens as numbers: those of the prompt, and those of the response."""
        text = self._text(side, row)
        words = [text.text[start:end] for start, end in text.pieces]
        numbers = [self._words.setdefault(word.strip().casefold() or word, len(self._words)) for word in words]
        return numbers[: text.prompt_length], numbers[text.prompt_length :]

    def _answer(self, side: Side, row: int, states: Tensor) -> Answer:
        """From the states (T D) of all of a text, or of its last tokens from the last one of the prompt on."""
        asked, said = self._numbers(side, row)
        last, response = states[-len(said) - 1][None], states[-len(said) :]
        centred = torch.cat([last - self._centres[0], response - self._centres[1]])
        return Answer(normalize(centred, dim=-1), torch.tensor(said), torch.tensor(asked))

    def _rarity(self, words: Tensor, containing: Counter[int]) -> Tensor:
        return rarity(torch.tensor([containing[word] for word in words.tolist()]), len(self._background))

    def _states_of(self, batch: Batch) -> Iterator[tuple[int, Tensor]]:
        """The representations (T D) of a batch's texts, by row."""
        on_device = batch.to(input_device(self.model))
        blocks = self.extractor.all_positions(self.model, on_device, [self.layer], ["representation"])
        block = next(iter(blocks.values())).cpu()
        return ((row, block[i, : int(batch.length[i])]) for i, row in enumerate(batch.row.tolist()))

    def _measured(self, rows: Sequence[int]) -> list[Answer]:
        """Reads the background: means of its states and embeddings, and how many of its texts contain each word."""
        kept: dict[int, Tensor] = {}
        states_sum, states, embedded_sum, embedded = torch.zeros(()), torch.zeros(2, 1), torch.zeros(()), 0
        self._asked: Counter[int] = Counter()
        self._said: Counter[int] = Counter()
        with record({"embedding": self.model.get_input_embeddings()}, gradients=False) as read:
            for batch in self.datamodule.batches("train", rows):
                for i, (row, own) in enumerate(self._states_of(batch)):
                    asked, said = self._numbers("train", row)
                    start = len(asked)
                    states_sum = states_sum + torch.stack([own[start - 1], own[start:].sum(0)]).double()
                    states += torch.tensor([[1], [len(said)]])
                    kept[row] = own[start - 1 :].clone()  # a view would keep the whole batch in memory
                    embedded_sum = embedded_sum + read["embedding"][i, : len(own)].double().sum(0).cpu()
                    embedded += len(own)
                    self._asked.update(set(asked))
                    self._said.update(set(said))
        self._centres = (states_sum / states).float()
        self._fill = (embedded_sum / embedded).float()
        return [self._answer("train", row, own) for row, own in kept.items()]

    def _compared(self, groups: Sequence[Sequence[Answer]]) -> list[list[Reference]]:
        """Adds to each answer how near the background comes to each of its states."""
        # A product for each group: what else is read at the same time changes no bit of it.
        states = [torch.cat([answer.states for answer in group]) for group in groups]
        nearest: list[list[Tensor]] = [[] for _ in groups]
        for other in self._background:
            for own, found in zip(states, nearest, strict=True):
                found.append((own @ other.states.T).amax(1))
        references = []
        for group, found in zip(groups, nearest, strict=True):
            sizes, highest = [len(answer.states) for answer in group], torch.stack(found, dim=1)
            mean, deviation = highest.mean(1), highest.std(1, correction=0).clamp_min(1e-6)
            parts = zip(group, torch.split(mean, sizes), torch.split(deviation, sizes), strict=True)
            references.append([Reference(*part) for part in parts])
        return references
