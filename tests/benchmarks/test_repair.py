"""benchmarks/repair.py: the cells of a report."""

from __future__ import annotations

from benchmarks.repair import lines


def test_a_report_without_clean_prompts_has_empty_cells():
    shown = {"triggered": {"share": 0.25, "of": 4}}
    disguises = {"none of them fired": {"before": {"share": 0.0, "of": 2}, "after": None}}
    disguises |= {
        "typos": {"before": {"share": 1.0, "of": 2}, "after": {"share": 0.5, "of": 2}},
        "none fired": {"after": None},
    }
    report = {
        "chosen": {"odd": {}},
        "behaviours": {"odd": {"after": shown, "disguises": disguises}},
        "clean": {"changed": None, "divergence": None},
        "milliseconds_per_token": {"overhead": 0.05},
        "controls": {"random": [{"rates": {"odd": 1.0}}, {"rates": {"odd": 0.5}}]},
    }
    assert lines("run", report) == [
        ("run", "odd", "25.0% *", "50.0% *", "50.0% *", "", "", "", ""),
        ("run", "all together", "", "", "", "", "", "5.0%", ""),
    ]
    report["clean"] = {"changed": {"share": 0.01, "of": 100}, "divergence": {"percentile_95": 0.06}}
    assert lines("run", report)[1][5:] == ("1.0%", "0.060 *", "5.0%", "")
