"""Chooses training rows to leave out among the hits of a run, and writes them as culprits.json."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rept.errors import UsageError
from rept.results.records import BehaviourHit, Hit
from rept.results.trace import Trace
from rept.utils.files import make_folder
from rept.utils.json_files import write_json
from rept.utils.text import format_count


@dataclass(frozen=True)
class Selection:
    """Which hits of a run count.

    Attributes:
        first: the first hits of each query.
        flagged: those that stand out, in a calibrated run.
        score: those with at least this score.
        label: only hits of queries with this label.
        behaviours: hits of these behaviours as a whole, instead of those of single queries.
        rate: of each behaviour, as many hits as leave this expected share of false ones among them.
    """

    first: int | None = None
    flagged: bool = False
    score: float | None = None
    label: str | None = None
    behaviours: tuple[str, ...] = ()
    rate: float | None = None

    @classmethod
    def default(cls, trace: Trace, label: str | None = None, behaviours: tuple[str, ...] = ()) -> Selection:
        """Returns the hits that stand out in a calibrated run; otherwise the first 10 of each query, or fewer."""
        if _calibrated(trace, behaviours):
            return cls(flagged=True, label=label, behaviours=behaviours)
        return cls(first=min(10, trace.config.top_k), label=label, behaviours=behaviours)

    def has(self, hit: Hit | BehaviourHit) -> bool:
        if self.flagged:
            return bool(hit.flagged)
        if self.rate is not None:
            return isinstance(hit, BehaviourHit) and hit.false_share is not None and hit.false_share <= self.rate
        if self.score is not None:
            return hit.score >= self.score
        return hit.rank <= (self.first or 0)

    def __str__(self) -> str:
        labelled = "" if self.label is None else f" with the label {self.label}"
        several = "behaviours" if len(self.behaviours) > 1 else "behaviour"
        named = f"the {several} {', '.join(self.behaviours)}" if self.behaviours else ""
        if self.first is not None:
            first = f"{self.first:,} hits" if self.first > 1 else "hit"
            return f"the first {first} of {named or f'each query{labelled}'}"
        whose = named or f"queries{labelled}"
        if self.rate is not None:
            return f"hits of {whose}, of which a share of at most {self.rate:g} is expected to be false"
        return f"hits of {whose} {'that stand out' if self.flagged else f'with a score of at least {self.score:g}'}"


def chosen_rows(trace: Trace, selection: Selection) -> dict[str, Any]:
    """Returns the content of culprits.json: the rows, how they were chosen, and why each was.

    Raises:
        UsageError: the run does not have the hits or labels that are asked for, or no hit is chosen.
    """
    _check(trace, selection)
    why = _of_behaviours(trace, selection) if selection.behaviours else _of_queries(trace, selection)
    if not why and selection.rate is not None:
        raise _none_at_rate(trace, selection)
    if not why:
        raise UsageError(f"{trace.folder.path} has no such row ({selection}): choose more hits, see --help.")
    labels = Counter(str(one["label"]) for one in why if one["label"] is not None)
    return {
        "run": str(trace.folder.path),
        "chosen": str(selection),
        "training data": trace.provenance["fingerprints"]["training data"],
        "labels": dict(labels.most_common()),
        "rows": [one["row"] for one in why],
        "why": why,
    }


def _of_queries(trace: Trace, selection: Selection) -> list[dict[str, Any]]:
    found: dict[int, list[Hit]] = {}
    for query in _asked(trace, selection):
        for hit in filter(selection.has, trace.hits(query)):
            found.setdefault(hit.row, []).append(hit)
    return [_reason(found[row]) for row in sorted(found)]


def _asked(trace: Trace, selection: Selection) -> list[int]:
    """The queries whose hits count."""
    return [query for query in trace.answered if selection.label in (None, trace.queries[query]["label"])]


def _of_behaviours(trace: Trace, selection: Selection) -> list[dict[str, Any]]:
    """Why each row was chosen, once: its best place in the behaviours' rankings, and the names of the others."""
    found: dict[int, list[BehaviourHit]] = {}
    for name in selection.behaviours:
        for hit in filter(selection.has, trace.behaviour(name)):
            found.setdefault(hit.row, []).append(hit)
    why = []
    for row in sorted(found):
        hit, *others = sorted(found[row], key=lambda hit: hit.rank)
        reason = {"row": row, "label": hit.label, "behaviour": hit.behaviour, "rank": hit.rank, "score": hit.score}
        why.append(reason | ({"also": [other.behaviour for other in others]} if others else {}))
    return why


def without_rows(trace: Trace, selection: Selection) -> str:
    """Names the behaviours of which no row was chosen by ``rate``, in a sentence; empty where there are none."""
    few = [name for name in selection.behaviours if not _estimated(trace, name)]
    none = [n for n in selection.behaviours if n not in few and not any(map(selection.has, trace.behaviour(n)))]
    said = [f"Fewer than five queries do not say how many rows share {', '.join(few)}."] if few else []
    return " ".join([*said, *([f"No row stands out for {', '.join(none)}."] if none else [])])


def may_have_more(trace: Trace, selection: Selection) -> bool:
    """Returns whether a ranking may go on, beyond the hits that the run has, with scores that count."""
    if selection.score is None:
        return False
    lowest = [trace.behaviour(name)[-1].score for name in selection.behaviours]
    return max(lowest or [trace.hits(query)[-1].score for query in _asked(trace, selection)]) >= selection.score


def described(content: dict[str, Any]) -> str:
    """Returns how many rows were chosen, how, and how many of each label, in words."""
    rows, labels = content["rows"], content["labels"]
    known = f"; by label: {', '.join(f'{label} {count:,}' for label, count in labels.items())}" if labels else ""
    return f"{format_count(len(rows), 'training row')}: {content['chosen']}{known}."


def write_culprits(path: Path, content: dict[str, Any]) -> None:
    """Writes culprits.json, which `datamodule.exclude` reads.

    Raises:
        UsageError: the file exists with another content, or cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file by out=, such as {path / 'culprits.json'}.")
    if path.exists() and not _same(path, content):
        raise UsageError(f"{path} exists and contains other rows: name another file by out=, or delete this one.")
    make_folder(path.parent)
    write_json(path, content)


def _check(trace: Trace, selection: Selection) -> None:
    run, top_k = trace.folder.path, trace.config.top_k
    if selection.first is not None and not 1 <= selection.first <= top_k:
        raise UsageError(
            f"Expected --first to be from 1 to {top_k}, the hits of each query that {run} has, but got "
            f"{selection.first}; for more, rank again: python -m rept score {run} top_k=... out=..."
        )
    if selection.flagged and not _calibrated(trace, selection.behaviours):
        if selection.behaviours and trace.config.calibration.rate is not None:
            raise _too_few_queries(trace, selection)
        raise UsageError(
            f"{run} is not calibrated, so no hit is known to stand out; choose by --first or --score, or calibrate: "
            f"python -m rept score {run} calibration.rate=0.05 out=..."
        )
    if selection.rate is not None:
        _check_rate(trace, selection)
    labels = {query["label"] for query in trace.queries if query["label"] is not None}
    if selection.label is not None and selection.label not in labels:
        known = ", ".join(sorted(labels)) or "none"
        raise UsageError(f"No query of {run} has the label {selection.label!r}; labels of the queries: {known}.")


def _check_rate(trace: Trace, selection: Selection) -> None:
    if not selection.behaviours or not 0 < float(selection.rate or 0) <= 0.5:
        raise UsageError(
            "Expected --rate to be above 0 and at most 0.5, for behaviours and not for a --label, but got "
            f"{selection.rate}."
        )
    if not any(_estimated(trace, name) for name in selection.behaviours):
        raise _too_few_queries(trace, selection)


def _estimated(trace: Trace, behaviour: str) -> bool:
    return any(hit.false_share is not None for hit in trace.behaviour(behaviour))


def _none_at_rate(trace: Trace, selection: Selection) -> UsageError:
    shares = [hit.false_share for name in selection.behaviours for hit in trace.behaviour(name)]
    least = min(share for share in shares if share is not None)
    reason = (
        f"the smallest share of false rows is {least:.2g}"
        if least < 1
        else "its queries resemble one another more than any row resembles them, too few rows resemble them, or clean "
        "queries resemble them as much"
    )
    return UsageError(
        f"No training row stands out for the behaviour {' or '.join(selection.behaviours)} at the rate "
        f"{selection.rate:g}: {reason}. The first rows are in behaviours.jsonl."
    )


def _too_few_queries(trace: Trace, selection: Selection) -> UsageError:
    return UsageError(
        f"The behaviour {' or '.join(selection.behaviours)} of {trace.folder.path} has fewer than five queries, which "
        "do not say how many rows share it; choose by --first or --score."
    )


def _calibrated(trace: Trace, behaviours: tuple[str, ...] = ()) -> bool:
    if behaviours:
        return any(hit.flagged is not None for name in behaviours for hit in trace.behaviour(name))
    return any(hit.flagged is not None for query in trace.answered for hit in trace.hits(query))


def _reason(hits: list[Hit]) -> dict[str, Any]:
    """Why a row was chosen: of how many queries it is a hit, and its best hit."""
    best = max(hits, key=lambda hit: (-hit.rank, hit.score))
    place = {"query": best.query, "rank": best.rank, "score": best.score}
    return {"row": best.row, "label": best.label, "queries": len(hits), "best": place}


def _same(path: Path, content: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == content)
    except (OSError, ValueError):
        return False
