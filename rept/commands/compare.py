"""python -m rept compare: several methods on the same model and data, or on a suite of hard cases."""

from __future__ import annotations

from pathlib import Path

from rept.errors import UsageError

CONFIG = "attribute"
USAGE = """
python -m rept compare experiments=[NAME,NAME,...] [key=value ...] [NAME.key=value ...] out=DIR

Runs each experiment of configs/experiment/ on the same model and data into DIR/NAME, prints how good and how costly
each is, and writes comparison.json, comparison.csv and comparison.png into DIR. Signatures stored there are reused.
A method that cannot run here is a row with the reason. NAME.key=value is for that experiment alone.

  python -m rept compare experiments=[rept,repsim,bm25] datamodule=instructions model.path=DIR \\
      datamodule.train=a.jsonl datamodule.queries=q.jsonl out=runs/compared
"""


OWN = ("experiments", "out")  # keys of this command itself


def run(arguments: list[str]) -> None:
    from omegaconf import OmegaConf

    own = OmegaConf.from_dotlist([argument for argument in arguments if argument.split("=")[0] in OWN])
    rest = [argument for argument in arguments if argument.split("=")[0] not in OWN]
    experiments, out = own.get("experiments"), Path(own.get("out", "runs/compared"))
    if not OmegaConf.is_list(experiments) or not experiments:
        raise UsageError(f"Expected experiments=[NAME,...], such as experiments=[rept,bm25], but got {experiments}.")

    from rept import comparison_table
    from rept.comparison import compare
    from rept.comparison_figure import draw
    from rept.console import say

    outcomes = compare(list(experiments), rest, out)
    comparison_table.show(outcomes)
    comparison_table.write(outcomes, rest, out)
    draw(outcomes, out / "comparison.png")
    say(f"All of it is in {out}.")
