"""python -m rept prove: trains again without the culprits, and without as many random rows."""

from __future__ import annotations

from rept.cli import split_options
from rept.errors import UsageError

CONFIG = None
USAGE = """
python -m rept prove RUN FILE [recipe=FOLDER_OR_YAML] [seed=N] [out=DIR]

Trains the model of RUN again by its own recipe (training.yaml in the model's folder), once without the training rows
listed in FILE, and once without as many random other rows, as a control. Asks both and the model of RUN the same
held-out prompts, and prints how often each behaviour shows, with 95 % intervals. Where the data have no held-out
prompts, they are asked the queries of RUN, and an answer counts if it contains a payload that spans of the queries mark
for its label, or, where none is marked, if its first words are those of the query's response.

FILE is culprits.json of python -m rept exclude or of the report page. The same command again resumes, or shows the
finished proof.

  recipe=...   a model folder of train.py, or a YAML file with the keys model, datamodule, finetune, trainer and seed as
               in training.yaml; needed for a model that train.py did not make
  seed=0       of the random rows
  out=...      the folder of both models and proof.json; default: RUN-proof

  python -m rept exclude runs/demo --first 40 && python -m rept prove runs/demo culprits.json
"""


def run(arguments: list[str]) -> None:
    takes = "a run folder, a file of rows and perhaps recipe=, seed= and out="
    (path, rows), settings = split_options(arguments, 2, ("recipe=", "seed=", "out="), takes)
    if not settings.get("seed", "0").isdecimal():
        raise UsageError(f"Expected seed to be a whole number from 0, but got {settings['seed']!r}.")

    from pathlib import Path

    from rept.evaluation.proof import prove
    from rept.evaluation.proof_inputs import proof_inputs
    from rept.utils.console import say
    from rept.utils.library_logging import quiet

    quiet()
    inputs = proof_inputs(path, rows, settings.get("recipe"))
    out = Path(settings.get("out") or f"{inputs.trace.folder.path}-proof")
    prove(inputs, out, int(settings.get("seed", "0")))
    say(f"Both models and proof.json are in {out}.")
