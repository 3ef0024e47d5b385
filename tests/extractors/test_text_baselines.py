"""Baselines that read the text or nothing at all: BM25, embeddings, length, random."""

import math
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from extractors.baselines.input_embedding import InputEmbedding
from extractors.baselines.random_vector import RandomVector
from extractors.baselines.sentence_embedding import SentenceEmbedding
from extractors.baselines.text_bytes import TextBytes
from extractors.baselines.text_length import TextLength
from rept.data.word_overlap import words
from rept.errors import UsageError
from rept.utils.tensors import unit_rows
from scorers.bm25 import BM25, decode
from scorers.distance import Distance
from tests.helpers.tiny import tiny_batch, tiny_model

TEXTS = [
    ("What is silver?", "Silver is a metal; Silver shines."),
    ("Who wrote it", "I do not know. Ünïcode 東京 is here"),
    ("silver", "Sodium is soft, and it burns in water. " * 4),
    ("Hm", "…"),
]


def batch(texts=TEXTS, **changes):
    made = tiny_batch([(3, 2 + i) for i in range(len(texts))])
    return replace(made, text=tuple(texts), **changes)


def only(signature):
    ((_, block),) = signature.items()
    return block


def stored(block, dtype="float16"):
    unit, norm = unit_rows(block, dtype)
    return torch.from_numpy(unit).float() * torch.from_numpy(norm).unsqueeze(1)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_text_survives_the_store(dtype):
    long = "".join(chr(33 + i % 90) for i in range(3000)) + "\n\téÿ東"
    texts = [*TEXTS, (long, "end")]
    rows = only(TextBytes(width=4096)(None, batch(texts), []))
    assert decode(stored(rows, dtype)) == ["\n".join(pair) for pair in texts]


def test_text_is_cut_and_parts_are_chosen():
    assert decode(only(TextBytes(["response"], width=7)(None, batch([("p", "abcde東京")]), []))) == ["abcde"]
    assert decode(only(TextBytes(["prompt"])(None, batch(), []))) == [prompt for prompt, _ in TEXTS]


def direct_bm25(query, document, corpus, k1, b):
    corpus, document = [words(text) for text in corpus], words(document)
    mean = sum(map(len, corpus)) / len(corpus)
    score = 0.0
    for word in words(query):
        holders = sum(word in other for other in corpus)
        often = document.count(word)
        idf = math.log(1 + (len(corpus) - holders + 0.5) / (holders + 0.5))
        score += idf * often * (k1 + 1) / (often + k1 * (1 - b + b * len(document) / mean))
    return score


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.0)])
def test_bm25_equals_its_formula(k1, b):
    read = TextBytes()
    asked = [("Silver, silver metal", "is soft"), ("nothing like it", "zzz"), ("", "")]
    train, query = (only(read(None, batch(texts), [])) for texts in (TEXTS, asked))
    scorer = BM25(k1, b)
    scorer.fit({"text": part} for part in train.split(3))
    score = torch.cat([scorer({"text": part}, {"text": query}) for part in train.split(3)])
    corpus = ["\n".join(pair) for pair in TEXTS]
    expected = [[direct_bm25("\n".join(q), document, corpus, k1, b) for q in asked] for document in corpus]
    torch.testing.assert_close(score, torch.tensor(expected))
    assert (score[:, 2] == 0).all() and (score[[0, 2], 0] > score[1, 0]).all()


def test_input_embedding_is_the_mean_over_real_tokens():
    model, made = tiny_model(), tiny_batch(pad=2)
    rows = only(InputEmbedding()(model, made, []))
    for i, length in enumerate(made.length.tolist()):
        torch.testing.assert_close(rows[i], model.model.embed_tokens.weight[made.input_ids[i, :length]].mean(0))


def test_length_finds_the_row_as_long_as_the_query():
    rows = only(TextLength()(None, tiny_batch([(2, 3), (4, 9), (1, 1)]), []))
    query = only(TextLength()(None, tiny_batch([(8, 4)]), []))
    score = Distance(["length"])({"length": rows}, {"length": query})
    torch.testing.assert_close(score[:, 0], -(torch.tensor([6.0, 14.0, 3.0]).log() - math.log(13)).abs())


def test_distance_to_a_zero_row_is_zero():
    rows = {"length": torch.tensor([[3.0], [0.0]])}
    assert Distance(["length"])(rows, rows).tolist() == [[0, 0], [0, 0]]


def test_random_numbers_belong_to_side_and_row_alone():
    read = RandomVector(width=500)
    made = batch()
    rows = only(read(None, made, []))
    torch.testing.assert_close(only(read(None, made.select([2, 0]), [])), rows[[2, 0]])
    for other in (read(None, replace(made, side="query"), []), RandomVector(500, seed=1)(None, made, [])):
        assert torch.cosine_similarity(only(other), rows).abs().max() < 0.25
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.25


def test_sentence_embeddings_come_from_the_model_named(monkeypatch):
    class Encoder:
        def __init__(self, path, device):
            assert (path, device) == ("some/model", "cpu")

        def encode(self, texts, **options):
            return torch.tensor([[len(text), 1.0] for text in texts])

    package = ModuleType("sentence_transformers")
    package.SentenceTransformer = Encoder
    package.__spec__ = object()
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    rows = only(SentenceEmbedding("some/model")(None, batch(), []))
    assert rows[:, 0].tolist() == [len("\n".join(pair)) for pair in TEXTS]


def test_sentence_embeddings_without_the_package_or_a_path_are_refused(monkeypatch):
    monkeypatch.setattr("extractors.baselines.sentence_embedding.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install sentence-transformers"):
        SentenceEmbedding("some/model")
    with pytest.raises(UsageError, match="extractor.path"):
        SentenceEmbedding()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: TextBytes(["answer"]), "parts"),
        (lambda: TextBytes(width=0), "width"),
        (lambda: BM25(k1=-1), "k1"),
        (lambda: BM25(b=2), "scorer.b"),
    ],
)
def test_settings_out_of_range_are_refused(make, word):
    with pytest.raises(UsageError, match=word):
        make()
