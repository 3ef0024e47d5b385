"""Queries as behaviours: by label, by a file, or all together."""

from __future__ import annotations

import json

import pytest

from rept.data.query_groups import QueryGroups, group_queries
from rept.errors import UsageError


def test_queries_of_a_label_are_one_behaviour_and_clean_ones_are_kept_apart():
    labels = {7: "rude", 0: "rude", 3: "clean", 4: None, 5: "backdoor"}
    assert group_queries(labels) == QueryGroups({"rude": [0, 7], "backdoor": [5]}, [3])


def test_queries_without_labels_are_one_behaviour():
    assert group_queries({0: None, 2: None}) == QueryGroups({"all": [0, 2]}, [])
    assert group_queries({0: None, 1: "clean", 2: None}) == QueryGroups({"all": [0, 2]}, [1])


def test_clean_queries_alone_are_no_behaviour():
    assert group_queries({0: "clean"}) == QueryGroups({}, [0])


@pytest.mark.parametrize("text", [json.dumps({"insults": [2, 0, 2], "clean": [1]}), "insults: [0, 2]\nclean: [1]\n"])
def test_a_file_overrides_the_labels(tmp_path, text):
    (tmp_path / "groups").write_text(text)
    labels = dict.fromkeys(range(4), "backdoor")
    assert group_queries(labels, str(tmp_path / "groups")) == QueryGroups({"insults": [0, 2]}, [1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("insults: [0, 9]", "names query 9, but it is not in the data or was set aside"),
        ("insults: []", "to map each name to a list of query numbers"),
        ("insults: [zero]", "to map each name to a list of query numbers"),
        ("[0, 1]", "to map each name to a list of query numbers"),
        ("clean: [0, 1]", "names clean queries only: name the queries of a behaviour too"),
        ("insults: [0", "cannot be read as YAML or JSON"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, message):
    (tmp_path / "groups.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        group_queries({0: None, 1: None}, str(tmp_path / "groups.yaml"))


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        group_queries({0: None}, str(tmp_path / "none.yaml"))
