"""python -m rept compare: compares methods on the same model and data, or on a suite of hard cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rept.errors import UsageError

CONFIG = "attribute"
USAGE = """
python -m rept compare experiments=[NAME,NAME,...] [sanity=[...]] [key=value ...] [NAME.key=value ...] [out=DIR]
python -m rept compare suite=hard|full [seeds=[0,1,2]] [experiments=[NAME,...]] [NAME.key=value ...] [out=DIR]

Runs each experiment of configs/experiment/ on the same model and data into DIR/NAME, prints how good and how costly
each is, and writes comparison.json, comparison.csv and comparison.png into DIR. Signatures stored there are reused.
A method that cannot run here gets a row with the reason. NAME.key=value is for that experiment alone.
Sanity checks of each method, of which sanity=[...] chooses some (default: all; [] is none):
  randomised  rank correlation with its scores on the model with shuffled weights: near 0 if they come from what the
              model has learned, 1 if the model is not read; costs each method's signatures a second time
  overlap     share of the first 10 hits that queries of different behaviours have in common; costs nothing
  self        share of 100 drawn training rows that are their own best hit; costs the ranking of 100 queries

With suite= it trains small models in which many behaviours are planted, from easy to hard, compares the methods on
them, and prints and writes (suite.json, suite.md) the figures of each case with intervals: average precision of each
query, of its behaviour, and their differences to the first experiment's, query by query. Finished parts are reused.
  python -m rept compare experiments=[rept,repsim,bm25] out=runs/compared
"""
OWN = ("experiments", "suite", "seeds", "sanity", "out")  # keys of this command itself


def run(arguments: list[str]) -> None:
    from rept.config.compose import split_keys

    given, rest = split_keys(arguments, OWN)
    own: dict[str, Any] = dict.fromkeys(OWN) | given
    for key, example in (("experiments", "[rept,bm25]"), ("seeds", "[0,1]")):
        if own[key] is not None and not (isinstance(own[key], list) and own[key]):
            raise UsageError(f"Expected {key} to be a list, as in {key}={example}, but got {own[key]}.")
    if own["suite"] is not None:
        _suite(own, rest)
    elif own["experiments"] is None:
        raise UsageError("Expected experiments=[NAME,...], such as experiments=[rept,bm25], or suite=hard.")
    else:
        _experiments(own, rest, Path(own["out"] or "runs/compared"))


def _experiments(own: dict[str, Any], rest: list[str], out: Path) -> None:
    from rept.evaluation import compare_table
    from rept.evaluation.compare import compare
    from rept.evaluation.compare_figure import draw
    from rept.evaluation.sanity import chosen_checks
    from rept.report.paper_style import require_matplotlib
    from rept.utils.console import say

    checks = chosen_checks(own["sanity"])
    require_matplotlib("comparison.png")
    outcomes = compare(own["experiments"], rest, out, checks)
    compare_table.show_comparison(outcomes)
    compare_table.write_comparison(outcomes, rest, out)
    draw(outcomes, out / "comparison.png")
    say(f"All results are in {out}.")


def _suite(own: dict[str, Any], rest: list[str]) -> None:
    from rept.evaluation import suite_table
    from rept.evaluation.suite import Suite, run_suite
    from rept.utils.console import say

    if own["sanity"] is not None:
        raise UsageError("sanity=[...] is for experiments=[...]: a suite has no sanity checks.")
    suite = Suite.named(own["suite"], experiments=own["experiments"], seeds=own["seeds"])
    out = Path(own["out"] or f"runs/suite-{own['suite']}")
    cases, outcomes = run_suite(suite, rest, out)
    suite_table.show_suite(cases, suite)
    for outcome in (one for one in outcomes if one.reason is not None):
        say(f"{outcome.folder} did not run: {outcome.reason}")
    suite_table.write_suite(cases, suite, out)
    say(f"All results are in {out}.")
