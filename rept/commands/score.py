"""python -m rept score: ranks the stored signatures of a run again."""

from __future__ import annotations

from rept.config.schema import RANKING

CONFIG = "attribute"
KEYS = RANKING
USAGE = """
python -m rept score RUN [scorer=WORD] [key=value ...] out=DIR

Ranks the stored signatures of a run again, by another scorer or with another top_k; the model is not needed. The keys
below can be set: all others of the run belong to the signatures. The new results are written to DIR, where they replace
only results of an earlier `score`; the run stays as it is.

  python -m rept score runs/demo scorer=gradient_representation out=runs/demo-product
"""


def run(arguments: list[str]) -> None:
    from rept.run.rescore import score

    score(arguments)
