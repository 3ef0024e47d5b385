"""DATE-LM's layout in small files, and its measures against scikit-learn and a direct count."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from datamodules.date_lm import DateLM, recall_and_rank, trapezoid_auprc
from rept.config.compose import compose
from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.errors import UsageError
from rept.run.pipeline import attribute
from tests.helpers import templates

TOXIC = [{"prompt": f"Ask {i}", "response": f"Say {i}", "type": "Unsafe" if i % 5 == 0 else "Safe"} for i in range(20)]
FACTS = [
    {
        "prompt": f"Name the king of {i}",
        "response": "fine",
        "true_entity": ("France", "Norland", None)[i % 3],
        "counterfactual_entity": ("Canada", "Norland")[i % 2],
    }
    for i in range(96)
]


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labels(data: DateLM, side: str) -> list[str | None]:
    source = data.source(side)
    return [source[row].label for row in range(len(source))]


def test_toxicity_rows_are_labelled_by_type_and_references_are_unsafe(tmp_path):
    references = [{"prompt": "Ask", "response": "Say"}, {"prompt": "Ask", "response": "Say", "type": "Unsafe"}]
    data = DateLM(lines(tmp_path / "train.jsonl", TOXIC), lines(tmp_path / "ref.jsonl", references))
    assert labels(data, "train") == [row["type"] for row in TOXIC]
    assert labels(data, "query") == ["Unsafe", "Unsafe"]
    sample = data.source("train")[3]
    assert (sample.prompt, sample.response) == ("Ask 3", "Say 3")


def test_facts_are_labelled_by_both_entities_from_the_splits_of_a_folder(tmp_path):
    splits = {"train": datasets.Dataset.from_list(FACTS), "ref": datasets.Dataset.from_list(FACTS[:4])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "counterfact")
    data = DateLM(str(tmp_path / "counterfact"))
    assert labels(data, "query") == ["France -> Canada", "Norland -> Norland", None, "France -> Norland"]
    found = labels(data, "train")
    for row, label in zip(FACTS, found, strict=True):
        alike = [r for r in FACTS if all(r[name] == row[name] for name in ("true_entity", "counterfactual_entity"))]
        assert label is None if row["true_entity"] is None else found.count(label) == len(alike)


def test_another_layout_is_reported(tmp_path):
    data = DateLM(lines(tmp_path / "train.jsonl", [{"prompt": "a", "response": "b", "label": "c"}]))
    with pytest.raises(
        UsageError, match="column type, or true_entity and counterfactual_entity; columns found: prompt"
    ):
        data.source("train")


def test_samples_are_rendered_in_the_benchmarks_format(tmp_path):
    train = lines(tmp_path / "train.jsonl", [{"prompt": " Ask 1 ", "response": "Say 1\n", "type": "Unsafe"}])
    data, tokenizer = DateLM(train, train), templates.build(templates.KINDS["llama_3"])
    data.attach(tokenizer)
    encoded = data.encoded("train", 0)
    assert encoded.text.strip() == f"<|user|>\nAsk 1\n<|assistant|>\nSay 1{tokenizer.eos_token}"
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length :]) == f"Say 1{tokenizer.eos_token}"
    assert tokenizer.decode(data.encoder.prompt(data.source("train")[0])).endswith("Ask 1\n<|assistant|>\n")


def test_the_configuration_builds_it():
    config = compose(AttributeConfig, ["datamodule=date_lm", "datamodule.train=somewhere"])
    data = build(config.datamodule, AttributionDataModule)
    assert isinstance(data, DateLM) and data.max_length == 1024


def test_the_measures_of_a_run_are_the_benchmarks(material, tmp_path):
    rows, references = FACTS, [row for row in FACTS[:9] if row["true_entity"]]
    arguments = material.arguments(tmp_path / "run", "tokens.hits=0", f"top_k={len(rows)}")
    kept = [word for word in arguments if not word.startswith(("datamodule", "top_k=8"))]
    paths = [lines(tmp_path / "train.jsonl", rows), lines(tmp_path / "ref.jsonl", references)]
    data = ["datamodule=date_lm", f"datamodule.train={paths[0]}", f"datamodule.queries={paths[1]}"]
    trace = attribute(compose(AttributeConfig, [*data, *kept]), show_result=False)
    precision, recall, reciprocal = [], [], []
    for query, asked in enumerate(references):
        hits = trace.hits(query)
        names = ("true_entity", "counterfactual_entity")
        relevant = np.array([all(rows[hit.row][name] == asked[name] for name in names) for hit in hits])
        order = -np.arange(len(hits))  # hits are in order, equal scores by row number
        precision.append(average_precision_score(relevant, order))
        recall.append(relevant[:50].sum() / relevant.sum())
        reciprocal.append(1 / (1 + relevant.argmax()))
    assert min(recall) < 1, "there must be more rows than the cutoff"
    overall = trace.metrics["with_same"]["overall"]  # the benchmark counts rows that are the reference itself
    assert overall["average_precision"] == pytest.approx(np.mean(precision))
    assert overall["recall@50"] == pytest.approx(np.mean(recall))
    assert overall["reciprocal_rank"] == pytest.approx(np.mean(reciprocal))
    own = trace.metrics["overall"]
    assert own["date_lm_recall@50"] == pytest.approx(np.mean(recall), abs=1e-6)
    assert own["date_lm_mrr"] == pytest.approx(np.mean(reciprocal), abs=1e-6)
    assert "date_lm_auprc" not in own


def made_up(rng: np.random.Generator, queries: int, ties: bool) -> np.ndarray:
    scores = rng.normal(size=(queries, len(FACTS))).astype(np.float32)
    return np.round(scores, 1) if ties else scores


def handed_out(scores: np.ndarray, rng: np.random.Generator):
    """The scores of a query in any order, as a run reads them."""

    def ranking(query: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rng.permutation(scores.shape[1])
        return rows, scores[query, rows]

    return ranking


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_toxicity_is_aggregated_as_by_the_benchmark(tmp_path, seed, ties):
    """The evaluator's figure: scikit-learn's curve of one score a row, and its area by trapezoids."""
    rng = np.random.default_rng(seed)
    rows = [{"prompt": "a", "response": "b", "type": "Unsafe" if rng.random() < 0.2 else "Safe"} for _ in FACTS]
    data = DateLM(lines(tmp_path / "train.jsonl", rows), lines(tmp_path / "ref.jsonl", TOXIC[:4]))
    scores = made_up(rng, 4, ties)
    unsafe = np.array([row["type"] == "Unsafe" for row in rows])
    one_score = scores.mean(0, dtype=np.float64)
    precision, recall, _ = precision_recall_curve(unsafe, one_score)
    found = data.published_measures(handed_out(scores, rng), range(4))
    assert found == {"date_lm_auprc": pytest.approx(auc(recall, precision), abs=1e-6)}
    rounded = np.round(one_score, 1)
    precision, recall, _ = precision_recall_curve(unsafe, rounded)
    assert trapezoid_auprc(rounded, unsafe) == pytest.approx(auc(recall, precision), abs=1e-6)
    assert auc(recall, precision) != pytest.approx(average_precision_score(unsafe, rounded), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_facts_are_aggregated_as_by_the_benchmark(tmp_path, seed):
    """The evaluator's figures: over references, the mean share of the rows with both entities among the 50 with the
    highest scores, and the mean of 1 over the rank of the first of them."""
    rng = np.random.default_rng(seed)
    references = [row for row in FACTS[:9] if row["true_entity"]]
    data = DateLM(lines(tmp_path / "train.jsonl", FACTS), lines(tmp_path / "ref.jsonl", references))
    scores = made_up(rng, len(references), ties=False)
    recalls, reciprocals = [], []
    for asked, score in zip(references, scores, strict=True):
        facts = [i for i, row in enumerate(FACTS) if all(row[k] == asked[k] for k in asked if k.endswith("_entity"))]
        order = np.argsort(-score).tolist()
        recalls.append(len(set(facts) & set(order[:50])) / len(facts))
        reciprocals.append(max(1 / (1 + order.index(i)) for i in facts))
    found = data.published_measures(handed_out(scores, rng), range(len(references)))
    expected = {"date_lm_recall@50": np.mean(recalls), "date_lm_mrr": np.mean(reciprocals)}
    assert found == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}


def test_rows_without_a_score_rank_last_together():
    relevant = np.array([True, False, True, False])
    scores = np.array([2.0, 3.0, -np.inf, -np.inf])
    precision, recall, _ = precision_recall_curve(relevant, np.array([2.0, 3.0, 0.0, 0.0]))
    assert trapezoid_auprc(scores, relevant) == pytest.approx(auc(recall, precision))
    assert recall_and_rank(scores, relevant, k=2) == (0.5, 0.5)


def test_a_run_on_toxicity_data_has_the_benchmark_s_measure(material, tmp_path):
    arguments = material.arguments(tmp_path / "run", "tokens.hits=0", f"top_k={len(TOXIC)}")
    kept = [word for word in arguments if not word.startswith(("datamodule", "top_k=8"))]
    paths = [lines(tmp_path / "train.jsonl", TOXIC), lines(tmp_path / "ref.jsonl", TOXIC[:10:5])]
    data = ["datamodule=date_lm", f"datamodule.train={paths[0]}", f"datamodule.queries={paths[1]}"]
    trace = attribute(compose(AttributeConfig, [*data, *kept]), show_result=False)
    mean = np.zeros(len(TOXIC))
    for query in range(2):
        for hit in trace.hits(query):
            mean[hit.row] += hit.score / 2
    unsafe = np.array([row["type"] == "Unsafe" for row in TOXIC])
    precision, recall, _ = precision_recall_curve(unsafe, mean)
    assert trace.metrics["overall"]["date_lm_auprc"] == pytest.approx(auc(recall, precision), abs=1e-6)
