"""python -m rept score: another scorer over the signatures of a run that exists."""

from __future__ import annotations

CONFIG = "attribute"
USAGE = """
python -m rept score RUN [scorer=WORD] [key=value ...] [out=DIR]

Ranks a run's stored signatures again, by another scorer or with another top_k; the model is not needed.
Without `out` the run's own results are replaced; with it, they go into DIR and the run stays as it is.

  python -m rept score runs/demo scorer=gradient_representation out=runs/demo-product
"""


def run(arguments: list[str]) -> None:
    from rept.pipeline import score

    score(arguments)
