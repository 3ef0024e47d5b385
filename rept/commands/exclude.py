"""python -m rept exclude: writes the training rows that a run found into culprits.json."""

from __future__ import annotations

import argparse
from typing import NoReturn

from rept.cli import split_options
from rept.errors import UsageError

CONFIG = None
USAGE = """
python -m rept exclude RUN [--first K | --flagged | --score X | --rate R] [--label L | --behaviour B ...] [out=FILE]

Writes the numbers of the training rows that RUN found, why each was chosen, and how many there are of each label where
labels are known, into FILE (culprits.json). python -m rept prove and datamodule.exclude of train.py read that file.

  --first K    the first K hits of each query; K may be up to the run's top_k
  --flagged    the hits that stand out; in calibrated runs only
  --score X    the hits with a score of at least X
  --rate R     of each behaviour, as many rows as leave an expected share of R false ones among them, such as 0.1
  --label L    only hits of queries with the label L
  --behaviour B  hits of the behaviour B as a whole (behaviours.jsonl), instead of those of single queries;
                 may be given several times; with --rate, all behaviours of the run if it is not given

Without one of the first three: the hits that stand out in a calibrated run, otherwise the first 10 hits of each query.

  python -m rept exclude runs/demo --first 40
  python -m rept exclude runs/demo --behaviour backdoor --behaviour compliance --rate 0.1
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help.")


def run(arguments: list[str]) -> None:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("given", nargs="*")
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--first", type=int)
    one_of.add_argument("--flagged", action="store_true")
    one_of.add_argument("--score", type=float)
    one_of.add_argument("--rate", type=float)
    of_these = parser.add_mutually_exclusive_group()
    of_these.add_argument("--label")
    of_these.add_argument("--behaviour", action="append", default=[])
    chosen = parser.parse_intermixed_args(arguments)
    (run_folder,), settings = split_options(chosen.given, 1, ("out=",), "one run folder and perhaps out=FILE")

    from pathlib import Path

    from rept.results.exclusion import Selection, chosen_rows, described, may_have_more, without_rows, write_culprits
    from rept.results.trace import Trace
    from rept.utils.console import say
    from rept.utils.text import format_count

    trace, out = Trace(run_folder), Path(settings.get("out", "culprits.json"))
    behaviours = tuple(dict.fromkeys(chosen.behaviour))
    if chosen.rate is not None and not behaviours and chosen.label is None:
        behaviours = tuple(trace.behaviours)
    selection = Selection(chosen.first, chosen.flagged, chosen.score, chosen.label, behaviours, chosen.rate)
    if chosen.first is None and chosen.score is None and chosen.rate is None and not chosen.flagged:
        selection = Selection.default(trace, chosen.label, behaviours)
    content = chosen_rows(trace, selection)
    write_culprits(out, content)
    say(described(content))
    if selection.rate is not None and (said := without_rows(trace, selection)):
        say(said)
    say(f"Wrote {out}.")
    if may_have_more(trace, selection):
        first = f"first {format_count(trace.config.top_k, 'hit')} of each {'behaviour' if behaviours else 'query'}"
        say(f"There may be more: {run_folder} has only the {first}.")
