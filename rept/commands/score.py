"""python -m rept score: ranks the stored signatures of a run again."""

from __future__ import annotations

CONFIG = "attribute"
USAGE = """
python -m rept score RUN [scorer=WORD] [key=value ...] out=DIR

Ranks the stored signatures of a run again, by another scorer or with another top_k; the model is not needed. The keys
that can be set are scorer, top_k, bottom_k, each, calibration, max_wait and out: all others belong to the signatures.
The new results are written to DIR, where they replace only results of an earlier `score`; the run stays as it is.

  python -m rept score runs/demo scorer=gradient_representation out=runs/demo-product
"""


def run(arguments: list[str]) -> None:
    from rept.run.rescore import score

    score(arguments)
