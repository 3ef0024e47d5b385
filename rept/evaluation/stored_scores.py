"""All scores of a finished run, computed again from its stored signatures, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rept.config.plug_ins import build
from rept.ranking.rank import Sink, rank
from rept.ranking.scorer import Scorer
from rept.results.run_folder import RunFolder
from rept.results.trace import Trace
from rept.store.reader import AttributionStore


def signatures_of(trace: Trace) -> Path:
    """The store that a run ranked: its own, or that of the run whose signatures were ranked again."""
    return RunFolder(trace.provenance.get("ranked_from", trace.folder.path)).store


def stored_scores(trace: Trace, sink: Sink) -> np.ndarray:
    """Hands the scores (n Q) of all attributed training rows to ``sink``; returns the scored queries (Q)."""
    train, query = (AttributionStore(signatures_of(trace), side) for side in ("train", "query"))
    fields = query.read(query.attributed, query.keys)
    rank(train, fields, build(trace.config.scorer, Scorer), top_k=1, sinks=[sink])
    return query.attributed
