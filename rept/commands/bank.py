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

OWN = ("experiments", "trainings", "share", "subset_seed", "recipe", "out")  # keys of this command itself


def run(arguments: list[str]) -> None:
    from rept.config.compose import parse_value

    given = dict(argument.split("=", 1) for argument in arguments if argument.split("=")[0] in OWN and "=" in argument)
    own: dict[str, Any] = {key: parse_value(text) for key, text in given.items()}
    rest = [argument for argument in arguments if argument.split("=")[0] not in OWN]
    if not isinstance(own.get("experiments"), list) or not own["experiments"]:
        raise UsageError("Expected experiments=[NAME,...], such as experiments=[rept,bm25]; see --help.")
    for key, kind, words in (("trainings", int, "a whole number"), ("share", float, "a number such as 0.5")):
        if key in own and type(own[key]) is not kind:
            raise UsageError(f"Expected {key} to be {words}, but got {given[key]}.")
    if type(own.get("subset_seed", 0)) is not int or own.get("subset_seed", 0) < 0:
        raise UsageError(f"Expected subset_seed to be a whole number from 0, but got {given['subset_seed']}.")

    from rept.evaluation.bank import Subsets, agreement, train_bank
    from rept.evaluation.bank_table import show_agreements, write_agreements
    from rept.evaluation.compare import compare
    from rept.evaluation.retraining import retraining
    from rept.results.trace import Trace
    from rept.utils.console import say
    from rept.utils.ranks import own_rank

    out = Path(own.get("out", "runs/bank"))
    subsets = Subsets(own.get("trainings", 50), own.get("share", 0.5), own.get("subset_seed", 0))
    outcomes = compare(own["experiments"], rest, out)
    ran = [outcome for outcome in outcomes if outcome.reason is None]
    if own_rank():  # the experiments may run on several devices; the trainings are rank 0's
        return
    if not ran:
        raise UsageError("None of the experiments could run, for the reasons above.")
    recipe = None if own.get("recipe") is None else str(own["recipe"])
    bank = train_bank(retraining(ran[0].folder, recipe), subsets, out)
    found = [agreement(outcome.experiment, Trace(outcome.folder), bank) for outcome in ran]
    show_agreements(found, len(bank.member))
    write_agreements(found, len(bank.member), out)
    say(f"All results are in {out}.")
