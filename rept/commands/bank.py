"""python -m rept bank: trains on random subsets, and measures how well scores predict what these models answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rept.errors import UsageError

CONFIG = "attribute"
USAGE = """
python -m rept bank experiments=[NAME,NAME,...] [trainings=N] [share=F] [subset_seed=N] [recipe=FOLDER_OR_YAML]
                    [key=value ...] [NAME.key=value ...] [out=DIR]

Trains the model again by its own recipe (training.yaml in its folder) on random subsets of its training rows, and runs
each experiment of configs/experiment/ on the model of all rows, as python -m rept compare does. Prints the linear
datamodeling score of each (arXiv 2303.14186): for a query, the rank correlation over the subsets between the sum of a
subset's scores and the log-likelihood of the query's response under the model trained on that subset. It is the mean
over queries, with a standard error over trainings (jackknife). bank.json has the score of each query.

The trainings are in DIR/trainings, the experiments' runs in DIR/NAME. The same command again resumes; with other
experiments it uses the finished trainings, and with more trainings it adds to them.

  trainings=50   number of subsets, at least 3; each costs about as much as its share of a training
  share=0.5      share of the training rows in a subset
  subset_seed=0  of the subsets
  recipe=...     a model folder of train.py, or a YAML file with the keys model, datamodule, finetune, trainer and seed
                 as in training.yaml; needed for a model that train.py did not make
  out=...        default: runs/bank

  python -m rept bank experiments=[rept,less,bm25] trainings=50 out=runs/bank
"""

OWN: dict[str, Any] = {"experiments": None, "trainings": 50, "share": 0.5, "subset_seed": 0}  # keys of this command
OWN |= {"recipe": None, "out": "runs/bank"}


def run(arguments: list[str]) -> None:
    from rept.config.compose import split_keys

    given, rest = split_keys(arguments, OWN)
    own = OWN | given
    if not isinstance(own["experiments"], list) or not own["experiments"]:
        raise UsageError("Expected experiments=[NAME,...], such as experiments=[rept,bm25]; see --help.")
    for key, kind, words in (
        ("trainings", int, "a whole number from 3"),
        ("share", float, "a number such as 0.5"),
        ("subset_seed", int, "a whole number from 0"),
    ):
        if type(own[key]) is not kind or own[key] < 0:
            raise UsageError(f"Expected {key} to be {words}, but got {own[key]}.")

    from rept.evaluation.bank import Subsets, agreement, train_bank
    from rept.evaluation.bank_table import show_agreements, write_agreements
    from rept.evaluation.compare import compare
    from rept.evaluation.retraining import retraining
    from rept.results.trace import Trace
    from rept.utils.console import say
    from rept.utils.ranks import own_rank

    out, subsets = Path(own["out"]), Subsets(own["trainings"], own["share"], own["subset_seed"])
    outcomes = compare(own["experiments"], rest, out)
    ran = [outcome for outcome in outcomes if outcome.reason is None]
    if own_rank():  # the experiments may run on several devices; the trainings are rank 0's
        return
    if not ran:
        raise UsageError("None of the experiments could run, for the reasons above.")
    bank = train_bank(retraining(ran[0].folder, own["recipe"] and str(own["recipe"])), subsets, out)
    found = [agreement(outcome.experiment, Trace(outcome.folder), bank) for outcome in ran]
    show_agreements(found, len(bank.member))
    write_agreements(found, len(bank.member), out)
    say(f"All results are in {out}.")
