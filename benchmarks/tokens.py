"""How well token scores mark the culprit words of the best hits: all forms and baselines, with intervals.

    python benchmarks/tokens.py RUN [RUN ...] [--words WORD ...] [--queries N]

Measured on the best hit of each query (with --queries, of the first N) that contains a culprit word, by label, as means
over hits: token average precision over the whole text, within the prompt and within the response; whether one of the
three tokens with the highest scores is part of a culprit word; and the difference to `matched` over the whole text,
with a 95 % interval from 2,000 resamplings of the hits. The culprit words are the spans in the data (as in the embedded
data), or the words given: `runs/backdoor --words TY "You are stupid!"`.

The baselines attribute the similarity S of row and query, the cosine of their mean states over the text, to the row's
tokens: gradient x input, integrated gradients (8 steps from the mean embedding), and occlusion (S minus S with a token
at the mean embedding). `word contrast` is the logarithm of how much more often a word is in the best hits of the label
than in 300 drawn training rows, `random` a random order.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from extractors.sites.residual_stream import ResidualStream
from rept.config.plug_ins import build
from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoded
from rept.data.samples import SpanKind
from rept.model.architecture import Architecture
from rept.model.loading import load_model, load_tokenizer
from rept.ranking.metrics import token_measures
from rept.ranking.token_influence import PairForm, choose_layer
from rept.results.trace import Trace
from rept.run.distinctive_tokens import BACKGROUND, DistinctiveTokens
from rept.run.token_pairs import score_pairs
from rept.types import PreTrainedModel
from rept.utils.console import show_table
from rept.utils.library_logging import quiet

HIGHEST, STEPS, RESAMPLINGS = 3, 8, 2000
MATCHED = "matched"
Scores = dict[int, Tensor]  # by query, of its best hit's tokens
Measured = dict[str, list[list[float]]]  # by label, for each hit: together, prompt, response, among the highest


class Material(NamedTuple):
    """What one run gives."""

    model: PreTrainedModel
    datamodule: AttributionDataModule
    layer: int
    hits: dict[int, int]  # the best hit of each query
    labels: dict[int, str]
    background: list[int]

    def text(self, side: str, row: int) -> Encoded:
        encoded = self.datamodule.encoded(side, row)  # type: ignore[arg-type]  # a literal
        assert isinstance(encoded, Encoded)
        return encoded


def read(path: str, words: Sequence[str], queries: int | None) -> tuple[Material, dict[int, list[SpanKind | None]]]:
    """Returns a run's material, and for each row the kind of the culprit word that each token is part of."""
    run = Trace(path)
    datamodule = build(run.config.datamodule, AttributionDataModule)
    name = run.config.model.path or datamodule.default_model
    assert name is not None
    datamodule.attach(load_tokenizer(name))
    datamodule.answers.update({q["query"]: q["response"] for q in run.queries if q["generated"]})
    model = load_model(name)
    layer = choose_layer(run.config.tokens.layer, run.layers["layers"], len(Architecture.of(model)))
    best = {query: hit.row for query in run.answered[:queries] if (hit := run.best(query))}
    background = np.random.default_rng(0).permutation(len(datamodule.source("train")))[:BACKGROUND].tolist()
    labels = {query: run.queries[query]["label"] or "no label" for query in best}
    material = Material(model, datamodule, layer, best, labels, background)
    marked = {row: marks(material.text("train", row), words) for row in best.values()}
    kept = {query: row for query, row in best.items() if any(marked[row])}
    return material._replace(hits=kept), marked


def marks(text: Encoded, words: Sequence[str]) -> list[SpanKind | None]:
    """The kind of culprit word that each token is part of; without words, the row's spans."""
    if not words:
        return text.marked
    found: list[SpanKind | None] = [None] * len(text.pieces)
    for start, end in ((text.text.find(word), text.text.find(word) + len(word)) for word in words):
        for i, (a, b) in enumerate(text.pieces):
            if start >= 0 and a < end and b > start:
                found[i] = "trigger" if i < text.prompt_length else "payload"
    return found


def pair_scores(material: Material, form: PairForm | DistinctiveTokens) -> Scores:
    """The scores of each query's best hit."""
    pairs = list(material.hits.items())
    found = score_pairs(material.model, ResidualStream(), material.datamodule, pairs, material.layer, form)
    return {one.query: one.scores for one in found if one.side == "train"}


def distinctive(material: Material, together: bool) -> Scores:
    """The scores of `distinctive`, for the queries of a label together or each alone."""
    queries = defaultdict(list)
    for query in material.hits:
        queries[material.labels[query] if together else query].append(query)
    hits = {query: [row] for query, row in material.hits.items()}
    scorer = DistinctiveTokens(
        material.model,
        ResidualStream(),
        material.datamodule,
        material.layer,
        list(queries.values()),
        hits,
        material.background,
    )
    return pair_scores(material, scorer)


def similarity_scores(material: Material) -> dict[str, Scores]:
    """Gradient x input, integrated gradients and occlusion of the similarity of row and query."""
    embed = material.model.get_input_embeddings()
    ids = [torch.tensor(material.text("train", row).input_ids) for row in material.background[:100]]
    fill = torch.cat([embed(one) for one in ids]).mean(0)
    found: dict[str, Scores] = {"gradient x input": {}, "integrated gradients": {}, "occlusion": {}}

    def mean_state(embedded: Tensor) -> Tensor:
        states = material.model(inputs_embeds=embedded, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        hidden: Tensor = states.hidden_states[material.layer]
        return hidden.mean(1)

    for query, row in material.hits.items():
        with torch.no_grad():
            asked = mean_state(embed(torch.tensor(material.text("query", query).input_ids))[None])
            own = embed(torch.tensor(material.text("train", row).input_ids))
            copies = own.repeat(len(own), 1, 1)
            copies[range(len(own)), range(len(own))] = fill
            before = cosine_similarity(mean_state(own[None]), asked)
            found["occlusion"][query] = before - torch.cat(
                [cosine_similarity(mean_state(part), asked) for part in copies.split(32)]
            )
        points = torch.stack([fill + (own - fill) * step / STEPS for step in range(1, STEPS + 1)]).requires_grad_()
        (gradient,) = torch.autograd.grad(cosine_similarity(mean_state(points), asked).sum(), points)
        found["gradient x input"][query] = (gradient[-1] * own).sum(-1)
        found["integrated gradients"][query] = (gradient.mean(0) * (own - fill)).sum(-1)
    return found


def word_contrast(material: Material) -> Scores:
    """The logarithm of how much more often each word is in the label's best hits than in drawn rows."""

    def words(row: int) -> list[str]:
        text = material.text("train", row)
        return [text.text[start:end].strip().casefold() for start, end in text.pieces]

    def share(rows: set[int]) -> Mapping[str, float]:
        counts: dict[str, float] = defaultdict(lambda: 0.5 / (len(rows) + 1))
        for row in rows:
            for word in set(words(row)):
                counts[word] += 1 / (len(rows) + 1)
        return counts

    others = share(set(material.background) - set(material.hits.values()))
    own = {
        label: share({row for query, row in material.hits.items() if material.labels[query] == label})
        for label in set(material.labels.values())
    }
    return {
        query: torch.tensor([np.log(own[material.labels[query]][word] / others[word]) for word in words(row)])
        for query, row in material.hits.items()
    }


def random_order(material: Material) -> Scores:
    """Uniform random scores."""
    generator = torch.Generator().manual_seed(0)
    lengths = {query: len(material.text("train", row).input_ids) for query, row in material.hits.items()}
    return {query: torch.rand(length, generator=generator) for query, length in lengths.items()}


def measure(material: Material, marked: Mapping[int, list[SpanKind | None]], scores: Scores) -> Measured:
    """The measures of each hit, by label."""
    found: Measured = defaultdict(list)
    for query, row in material.hits.items():
        one = scores[query]
        values = token_measures(one.tolist(), marked[row], material.text("train", row).response).values()
        highest = any(marked[row][i] for i in one.topk(min(HIGHEST, len(one))).indices.tolist())
        found[material.labels[query]].append([np.nan if value is None else value for value in (*values, highest)])
    return found


def show(measured: Mapping[str, Measured]) -> None:
    """Prints one table for each label, and one over all."""
    labels = list(measured[MATCHED])
    for label in [*labels, "all"] if len(labels) > 1 else labels:
        rows = {
            form: np.array([hit for one in ([label] if label != "all" else labels) for hit in by_label[one]])
            for form, by_label in measured.items()
        }
        columns = ("form", "together", "prompt", "response", f"among the {HIGHEST} highest", "together - matched")
        lines: list[tuple[str, ...]] = []
        resampled = np.random.default_rng(0).integers(len(rows[MATCHED]), size=(RESAMPLINGS, len(rows[MATCHED])))
        for form, values in rows.items():
            difference = values[:, 0] - rows[MATCHED][:, 0]
            low, high = np.percentile(difference[resampled].mean(1), [2.5, 97.5])
            interval = f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append((form, *(f"{value:.3f}" for value in np.nanmean(values, 0)), interval))
        show_table(f"{label}: {len(rows[MATCHED])} best hits with a culprit word", columns, lines)


def main(arguments: Sequence[str]) -> None:
    """Measures every form on every run, and prints the tables."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--words", nargs="*", default=())
    parser.add_argument("--queries", type=int)
    given = parser.parse_args(arguments)
    quiet()
    measured: dict[str, Measured] = defaultdict(lambda: defaultdict(list))
    for path in given.runs:
        material, marked = read(path, given.words, given.queries)
        scores = {
            "random": random_order(material),
            "word contrast": word_contrast(material),
            **similarity_scores(material),
            **{form: pair_scores(material, form) for form in get_args(PairForm)},
            "distinctive, one query": distinctive(material, together=False),
            "distinctive, behaviour": distinctive(material, together=True),
        }
        for form, one in scores.items():
            for label, hits in measure(material, marked, one).items():
                measured[form][label] += hits
    show(measured)


if __name__ == "__main__":
    main(sys.argv[1:])
