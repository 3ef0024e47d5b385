"""DATE-LM's layout in small files, and its measures against scikit-learn and a direct count."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from datamodules.date_lm import DateLM
from rept.config.compose import compose
from rept.config.plug_ins import build
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
    config = compose("attribute", ["datamodule=date_lm", "datamodule.train=somewhere"])
    data = build(config.datamodule, AttributionDataModule)
    assert isinstance(data, DateLM) and data.max_length == 1024


def test_the_measures_of_a_run_are_the_benchmarks(material, tmp_path):
    rows, references = FACTS, [row for row in FACTS[:9] if row["true_entity"]]
    arguments = material.arguments(tmp_path / "run", "tokens.hits=0", f"top_k={len(rows)}")
    kept = [word for word in arguments if not word.startswith(("datamodule", "top_k=8"))]
    paths = [lines(tmp_path / "train.jsonl", rows), lines(tmp_path / "ref.jsonl", references)]
    data = ["datamodule=date_lm", f"datamodule.train={paths[0]}", f"datamodule.queries={paths[1]}"]
    trace = attribute(compose("attribute", [*data, *kept]), show_result=False)
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
