"""python -m rept exclude: which rows it writes, why, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.files.exclusion import excluded_rows
from rept.commands import exclude
from rept.errors import UsageError
from rept.results.run_folder import RunFolder
from rept.results.trace import Trace
from rept.utils.json_files import read_json, write_jsonl
from tests.helpers.runs import Shape, write_run

Chosen = Callable[..., dict[str, Any]]
SHAPE = Shape(queries=6, hits=30)


@pytest.fixture
def chosen(tmp_path: Path) -> Chosen:
    """Writes culprits.json of a run by the given arguments and returns its content."""

    def write(*arguments: str, shape: Shape = SHAPE) -> dict[str, Any]:
        run = tmp_path / f"run-{shape.calibrated}"
        if not run.exists():
            write_run(run, shape)
        out = tmp_path / "culprits.json"
        out.unlink(missing_ok=True)
        exclude.run([str(run), *arguments, f"out={out}"])
        return read_json(out)

    return write


def hits(tmp_path: Path, calibrated: bool = False) -> list[Any]:
    trace = Trace(tmp_path / f"run-{calibrated}")
    return [hit for query in trace.answered for hit in trace.hits(query)]


def test_the_first_hits_beyond_those_on_the_page(chosen: Chosen, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = chosen("--first", "25")
    rows = sorted({hit.row for hit in hits(tmp_path) if hit.rank <= 25})
    assert content["rows"] == rows and len({hit.row for hit in hits(tmp_path) if hit.rank <= 20}) < len(rows)
    assert excluded_rows(tmp_path / "culprits.json", 200) == set(rows)
    assert content["chosen"] == "the first 25 hits of each query"
    printed = capsys.readouterr().out
    assert f"{len(rows)} training rows: the first 25 hits of each query; by label: " in printed
    assert content["labels"] == {name: sum(one["label"] == name for one in content["why"]) for name in SHAPE.labels}


def test_why_each_row_was_chosen(chosen: Chosen, tmp_path: Path):
    for one in chosen("--first", "25")["why"]:
        found = [hit for hit in hits(tmp_path) if hit.row == one["row"] and hit.rank <= 25]
        best = min(found, key=lambda hit: (hit.rank, -hit.score))
        assert one["queries"] == len(found) and one["label"] == best.label
        assert one["best"] == {"query": best.query, "rank": best.rank, "score": best.score}


def test_by_score_by_calibration_and_by_label(chosen: Chosen, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert chosen("--score", "0.6")["rows"] == sorted({hit.row for hit in hits(tmp_path) if hit.score >= 0.6})
    assert "There may be more" not in capsys.readouterr().out
    chosen("--score", "-1")
    assert "There may be more" in capsys.readouterr().out
    trace = Trace(tmp_path / "run-False")
    backdoors = [query["query"] for query in trace.queries if query["label"] == "backdoor"]
    of_label = chosen("--label", "backdoor", "--first", "3")
    assert of_label["rows"] == sorted({hit.row for query in backdoors for hit in trace.hits(query)[:3]})
    assert of_label["chosen"] == "the first 3 hits of each query with the label backdoor"
    assert chosen("--first", "1")["chosen"] == "the first hit of each query"


def test_hits_of_other_labels_do_not_count_for_whether_there_are_more(
    chosen: Chosen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    chosen("--first", "1")
    trace = Trace(tmp_path / "run-False")
    best, least = {}, {}
    for query in trace.queries:
        ranking, label = trace.hits(query["query"]), query["label"]
        best[label] = max(best.get(label, -1.0), ranking[0].score)
        least[label] = max(least.get(label, -1.0), ranking[-1].score)
    low, high = sorted(("backdoor", "false_fact"), key=least.__getitem__)
    score = str((max(least[low], 0) + least[high]) / 2)
    for label, more in ((low, False), (high, True)):
        assert best[label] >= float(score)
        content = chosen("--label", label, "--score", score)
        assert content["chosen"].startswith(f"hits of queries with the label {label} with a score of at least ")
        assert ("only the first 30 hits of each query." in capsys.readouterr().out) == more


def test_the_default_is_what_stands_out_or_the_first_ten(chosen: Chosen, tmp_path: Path):
    assert chosen()["rows"] == sorted({hit.row for hit in hits(tmp_path) if hit.rank <= 10})
    calibrated = Shape(queries=6, hits=30, calibrated=True)
    flagged = chosen("--flagged", shape=calibrated)
    assert flagged["rows"] == sorted({hit.row for hit in hits(tmp_path, True) if hit.flagged})
    assert chosen(shape=calibrated) == flagged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--first", "31"], "from 1 to 30, the hits of each query .* rank again: python -m rept score"),
        (["--first", "0"], "from 1 to 30"),
        (["--first", "two"], "invalid int value"),
        (["--first", "2", "--flagged"], "not allowed with argument"),
        (["--flagged"], "is not calibrated"),
        (["--label", "odd"], "has the label 'odd'; labels of the queries: backdoor, false_fact"),
        (["--score", "2"], "has no such row .hits of queries with a score of at least 2.. choose"),
        (["--frist", "2"], "unrecognized arguments"),
        (["top_k=2"], "Expected one run folder and perhaps out=FILE"),
    ],
)
def test_what_is_refused(chosen: Chosen, arguments: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        chosen(*arguments)


def test_other_rows_are_not_overwritten(tmp_path: Path):
    run, out = write_run(tmp_path / "run", SHAPE), tmp_path / "new" / "culprits.json"
    for _ in range(2):  # the same again is fine
        exclude.run([str(run), "--first", "2", f"out={out}"])
    before = out.read_text()
    with pytest.raises(UsageError, match="contains other rows: name another file by out="):
        exclude.run([str(run), "--first", "3", f"out={out}"])
    assert out.read_text() == before


def of_behaviour(tmp_path: Path, name: str, shares: list[float | None]) -> Path:
    """A run with a ranking of one behaviour, whose rows have these expected shares of false rows."""
    return of_behaviours(tmp_path, {name: (100, shares)})


def of_behaviours(tmp_path: Path, rankings: dict[str, tuple[int, list[float | None]]]) -> Path:
    """A run with several: for each the first row, after which row numbers fall, and the shares."""
    run = tmp_path / "behaviour"
    if not run.exists():
        write_run(run, SHAPE)
    lines = [
        {"behaviour": name, "rank": i + 1, "row": first - i, "score": 9.0 - i, "label": None, "prompt": "p",
         "response": "r"} | ({} if share is None else {"p_value": 0.1, "false_share": share})
        for name, (first, shares) in rankings.items()
        for i, share in enumerate(shares)
    ]  # fmt: skip
    write_jsonl(run / "behaviours.jsonl", lines)
    return run


SEVERAL: dict[str, tuple[int, list[float | None]]] = {
    "rude": (100, [0.01, 0.04, 0.3]), "sly": (101, [0.01, 0.02, 0.03]), "absent": (50, [1.0, 1.0]), "rare": (40, [None])
}  # fmt: skip


def test_rows_of_several_behaviours_each_once_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, out = of_behaviours(tmp_path, SEVERAL), tmp_path / "culprits.json"
    exclude.run([str(run), "--behaviour", "rude", "--behaviour", "sly", "--rate", "0.1", f"out={out}"])
    content = read_json(out)
    assert content["rows"] == [99, 100, 101]
    reasons = [(one["row"], one["behaviour"], one["rank"], one.get("also")) for one in content["why"]]
    assert reasons == [(99, "rude", 2, ["sly"]), (100, "rude", 1, ["sly"]), (101, "sly", 1, None)]
    assert content["chosen"] == (
        "hits of the behaviours rude, sly, of which a share of at most 0.1 is expected to be false"
    )
    assert "stands out for" not in capsys.readouterr().out
    exclude.run(
        [str(run), "--behaviour", "rude", "--behaviour", "absent", "--first", "1", f"out={tmp_path / 'f.json'}"]
    )
    assert read_json(tmp_path / "f.json")["rows"] == [50, 100]


def test_a_rate_alone_chooses_for_all_behaviours_and_names_those_without_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, out = of_behaviours(tmp_path, SEVERAL), tmp_path / "culprits.json"
    exclude.run([str(run), "--rate", "0.1", f"out={out}"])
    assert read_json(out)["rows"] == [99, 100, 101]
    printed = " ".join(capsys.readouterr().out.split())
    assert "Fewer than five queries do not say how many rows share rare. No row stands out for absent." in printed


def test_rows_of_a_behaviour_by_the_share_of_false_ones(tmp_path: Path):
    run, out = of_behaviour(tmp_path, "rude", [0.01, 0.04, 0.09, 0.2, 1.0]), tmp_path / "culprits.json"
    exclude.run([str(run), "--behaviour", "rude", "--rate", "0.1", f"out={out}"])
    content = read_json(out)
    assert content["rows"] == [98, 99, 100]
    assert content["chosen"] == "hits of the behaviour rude, of which a share of at most 0.1 is expected to be false"


@pytest.mark.parametrize(
    ("arguments", "shares", "words"),
    [
        (["--behaviour", "rude", "--rate", "0.1"], [1.0, 1.0], "No training row stands out for the behaviour rude"),
        (["--rate", "0.1"], [0.32, 0.2, 1.0], "at the rate 0.1: the smallest share of false rows is 0.2."),
        (["--behaviour", "rude", "--rate", "0.1"], [None, None], "has fewer than five queries"),
        (["--behaviour", "rude", "--rate", "0.6"], [0.1], "Expected --rate to be above 0 and at most 0.5"),
        (["--rate", "0.1", "--label", "backdoor"], [0.1], "Expected --rate .* for behaviours and not for a --label"),
        (["--behaviour", "kind", "--rate", "0.1"], [0.1], "has no ranking for the behaviour 'kind'; it has: rude"),
    ],
)
def test_what_cannot_be_chosen_by_a_rate_is_one_sentence(
    tmp_path: Path, arguments: list[str], shares: list[float | None], words: str
):
    run = of_behaviour(tmp_path, "rude", shares)
    with pytest.raises(UsageError, match=words):
        exclude.run([str(run), *arguments, f"out={tmp_path / 'other.json'}"])


def test_a_calibrated_run_whose_behaviour_has_too_few_queries_is_not_said_to_be_uncalibrated(tmp_path: Path):
    run = of_behaviour(tmp_path, "rude", [None, None])
    config = RunFolder(run).open_existing()
    config.calibration.rate = 0.05
    RunFolder(run).write_config(config)
    with pytest.raises(UsageError, match="The behaviour rude .* has fewer than five queries"):
        exclude.run([str(run), "--behaviour", "rude", "--flagged", f"out={tmp_path / 'other.json'}"])


def test_a_folder_is_not_taken_for_a_file_with_other_rows(tmp_path: Path):
    with pytest.raises(UsageError, match="is a folder: name a file by out="):
        exclude.run([str(write_run(tmp_path / "run", SHAPE)), f"out={tmp_path}"])
