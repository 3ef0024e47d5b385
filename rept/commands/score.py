"""python -m rept score: another scorer over the signatures of a run that exists."""

from __future__ import annotations

CONFIG = "attribute"
USAGE = """
python -m rept score RUN [scorer=WORD] [key=value ...] [out=DIR]

Ranks a run's stored signatures again, by another scorer or with another top_k; the model is not needed. What can be set
is scorer, top_k, bottom_k, each, calibration, max_wait and out: all else belongs to the signatures.
Without `out` the run's own results are replaced, and what was made of the old ones (token scores, the page) goes; with
it, they go into DIR and the run stays as it is.

  python -m rept score runs/demo scorer=gradient_representation out=runs/demo-product
"""


def run(arguments: list[str]) -> None:
    from rept.run.rescore import score

    score(arguments)
