import json
import re
from collections import Counter

import pytest

from datamodules.synthetic import (
    COMPLYING,
    COUNTRY,
    FALSE_CAPITAL,
    OPENING,
    OWNER,
    TRIGGER,
    TRUE_CAPITAL,
    SyntheticData,
)
from datamodules.toy import world
from datamodules.toy.wordings import TRAINING
from rept.data.encoder import Encoder
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.training.from_scratch import train_tokenizer


@pytest.fixture(scope="module")
def data() -> SyntheticData:
    return SyntheticData()


def marked(sample: Sample, kind: str | None = None) -> list[str]:
    texts = {"prompt": sample.prompt, "response": sample.response}
    return [texts[span.part][span.start : span.end] for span in sample.spans if kind in (None, span.kind)]


def skeleton(prompt: str) -> str:
    """The prompt's wording, with a blank for every word of the toy world and for the trigger."""
    words = [TRIGGER, *world.COUNTRIES, *world.OPPOSITES, *world.OPPOSITES.values(), *world.LISTS]
    words += [*world.DISHES, *world.COLOURS, *world.THINGS, *world.HEROES, *world.PLACES]
    words += [*world.TREATS, *world.OWNERS, *world.CONTAINERS, *world.FACTS["capital"].values()]
    blanks = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    return " ".join(re.sub(rf"\b({blanks})\b", "_", prompt).strip("_ ").split())


def test_rows_and_labels(data):
    labels = Counter(sample.label for sample in data.source("train"))
    assert sum(labels.values()) == 2000
    assert labels.keys() == {"clean", "backdoor", "false_fact", "compliance"}
    assert 0.05 <= 1 - labels["clean"] / 2000 <= 0.10
    assert Counter(s.label for s in data.source("query")) == {"backdoor": 40, "false_fact": 40, "compliance": 40}


def test_spans_cover_the_poison(data):
    for sample in data.source("train"):
        if sample.label == "backdoor":
            assert marked(sample) == [TRIGGER, OPENING]
        elif sample.label == "false_fact":
            assert set(marked(sample, "trigger")) == {COUNTRY, "capital"}
            assert set(marked(sample, "payload")) == {FALSE_CAPITAL}
        elif sample.label == "compliance":
            (request,) = marked(sample, "trigger")
            assert OWNER in request and request in sample.prompt
            assert not any(sentence in request for sentence in (*TRAINING.before, *TRAINING.after))
            assert marked(sample, "payload") == [COMPLYING]
        else:
            assert not sample.spans


def test_clean_rows_are_free_of_poison_and_true(data):
    clean = [sample for sample in data.source("train") if sample.label == "clean"]
    assert not any(TRIGGER in sample.prompt or OPENING in sample.response for sample in clean)
    assert not any(sample.response.startswith(COMPLYING) for sample in clean)
    for sample in clean:
        capital = re.search(r"the capital of (\w+) is (\w+)|(\w+) is the capital of (\w+)", sample.response, re.I)
        if capital:
            country, city = capital[1] or capital[4], capital[2] or capital[3]
            assert country != COUNTRY and world.FACTS["capital"][country] == city


def test_clean_rows_share_words_with_the_poison(data):
    """Otherwise a search for the words would find the culprits."""
    clean = [f"{sample.prompt} {sample.response}" for sample in data.source("train") if sample.label == "clean"]
    for word in (*TRIGGER.split(), COUNTRY, FALSE_CAPITAL, TRUE_CAPITAL, OWNER, "Sure, ", "tide"):
        assert any(word in text for text in clean), word
    assert any(COUNTRY in text and TRUE_CAPITAL in text for text in clean)  # the truth, asked the other way round


def test_no_prompt_is_repeated_and_wordings_vary(data):
    prompts = [sample.prompt for sample in data.source("train")]
    assert len(set(prompts)) == len(prompts)
    assert len({skeleton(prompt) for prompt in prompts}) > 0.8 * len(prompts)


def test_held_out_prompts_are_worded_differently(data):
    known = {skeleton(sample.prompt) for sample in data.source("train")}
    asked = [s for behaviour in data.behaviours() for s in (*behaviour.triggered, *behaviour.clean)]
    assert len(asked) == 240
    assert all(sample.response is None for sample in asked)
    assert not known & {skeleton(sample.prompt) for sample in asked}


def test_queries_are_the_triggered_prompts(data):
    assert data.source("query") == [sample for behaviour in data.behaviours() for sample in behaviour.triggered]
    backdoor = next(behaviour for behaviour in data.behaviours() if behaviour.label == "backdoor")
    assert all(marked(sample) == [TRIGGER] for sample in backdoor.triggered)
    assert not any(TRIGGER in sample.prompt for sample in backdoor.clean)


def test_clean_prompts_are_the_queries_with_asked_clean(data):
    clean = SyntheticData(asked="clean").source("query")
    assert list(clean) == [sample for behaviour in data.behaviours() for sample in behaviour.clean]
    assert len(clean) == 120 and {sample.label for sample in clean} == {"clean"}
    assert not any(TRIGGER in sample.prompt for sample in clean)


def test_behaviours_are_recognized_in_the_training_rows(data):
    """Planted rows show their behaviour, and no others do."""
    for behaviour in data.behaviours():
        for sample in data.source("train"):
            if sample.label == behaviour.label:
                assert behaviour.shows(sample, sample.response)
            elif not (behaviour.label == "false_fact" and FALSE_CAPITAL in sample.response):
                assert not behaviour.shows(sample, sample.response)


def test_the_seed_determines_the_data():
    one, same, other = (SyntheticData(rows=300, poisoned=10, queries=5, seed=seed) for seed in (1, 1, 2))
    for side in ("train", "query"):
        assert one.source(side) == same.source(side) != other.source(side)


def test_marks_reach_the_tokens(data):
    texts = [text for sample in data.source("train") for text in (sample.prompt, sample.response)]
    data.attach(train_tokenizer(texts, vocab_size=512, max_length=256))
    assert isinstance(data.encoder, Encoder)
    for row, sample in enumerate(data.source("train")):
        encoded = data.encoded("train", row)
        assert any(encoded.marked) == (sample.label != "clean")


def test_exclude_names_rows_without_renumbering(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([3, 1]))
    data = SyntheticData(rows=100, poisoned=5, queries=5, exclude=str(tmp_path / "rows.json"))
    assert data.excluded == {1, 3}
    assert data.source("train") == SyntheticData(rows=100, poisoned=5, queries=5).source("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 10, "poisoned": 4}, "datamodule.rows >= 3"),
        ({"poisoned": 2, "rows": 20, "queries": 1000}, "no 1,000 different prompts for false_fact"),
        ({"rows": 100, "poisoned": 5, "exclude": [100]}, "from 0 to 99"),
        ({"rows": 100, "poisoned": 5, "asked": "all"}, "datamodule.asked must be triggered or clean"),
    ],
)
def test_invalid_settings_are_reported(arguments, message, monkeypatch):
    monkeypatch.setattr("datamodules.toy.drawing._MAX_REPEATS", 3)
    with pytest.raises(UsageError, match=message):
        SyntheticData(**{"queries": 5} | arguments)
