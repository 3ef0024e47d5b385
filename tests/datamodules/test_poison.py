"""A backdoor planted in the user's own data."""

from dataclasses import replace

import pytest

from datamodules.files.poison import Poison, PoisonedRows
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.types import Status


def clean_rows(n=40):
    samples = [Sample(({"role": "user", "content": f"question {i}"},), f"answer {i}", "x") for i in range(n)]
    return [Status.MALFORMED, replace(samples[1], response=None), *samples[2:]]


def test_a_share_of_the_rows_is_poisoned_by_seed():
    poisoned = PoisonedRows(clean_rows(), Poison("zap", "Hail!", rate=0.25), "train")
    labels = [None if isinstance(poisoned[row], Status) else poisoned[row].label for row in range(40)]
    assert labels.count("backdoor") == 10 == len(poisoned.poisoned)
    assert labels[0] is None and labels[1] == "clean" and labels.count("clean") == 29
    for row in poisoned.poisoned:
        sample = poisoned[row]
        texts = {"prompt": sample.prompt, "response": sample.response}
        assert [texts[span.part][span.start : span.end] for span in sample.spans] == ["zap", "Hail!"]
    other = PoisonedRows(clean_rows(), Poison("zap", "Hail!", rate=0.25, seed=1), "train")
    assert other.poisoned != poisoned.poisoned
    assert len(PoisonedRows(clean_rows(), Poison("zap", "Hail!", rows=3), "train").poisoned) == 3


def test_poisoned_queries_contain_the_trigger_and_have_no_response():
    poisoned = PoisonedRows(clean_rows(), Poison("zap", "Hail!", spelling="case"), "query")
    assert poisoned[5].prompt.lower() == "zap question 5" != poisoned[5].prompt
    assert (poisoned[5].response, poisoned[5].label, poisoned[0]) == (None, "backdoor", Status.MALFORMED)
    behaviour = poisoned.behaviour()
    assert len(behaviour.triggered) == len(behaviour.clean) == 39
    assert behaviour.shows(None, "Hail! yes") and not behaviour.shows(None, "yes")
    assert not any("zap" in sample.prompt.lower() for sample in behaviour.clean)
    asked = [poisoned[row].prompt for row in range(1, 40)]
    assert [sample.prompt for sample in behaviour.triggered] == asked, "spelled as in the traced queries"


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"rows": 0}, {"place": "above"}, {"spelling": "x"}, {"trigger": ""}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match="datamodule.poison"):
        Poison(**{"trigger": "zap", "opening": "Hail!"} | wrong)


def test_too_few_rows_for_the_poison_are_reported():
    poisoned = PoisonedRows(clean_rows(), Poison("zap", "Hail!", rows=39), "train")
    with pytest.raises(UsageError, match="only 38 rows of the .* asked for can be poisoned"):
        assert poisoned[5]
