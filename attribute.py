"""Traces a model's answers to its training samples and the words in them. See `python attribute.py --help`."""

from __future__ import annotations

import sys

from rept.cli import main

USAGE = """
python attribute.py [word=name ...] [key=value ...] [--dry-run]

Traces the answers of a language model back to the training samples, and the words in them, that caused them.

  python attribute.py
      the embedded data and model, offline
  python attribute.py datamodule=instructions model.path=DIR datamodule.train=a.jsonl datamodule.queries=q.jsonl \\
      out=runs/mine
      your own model and data
  python attribute.py extractor=mlp_output layers=fixed layers.layers=[4] scorer=inner_product trainer.devices=4
      other parts, more devices
  python attribute.py scorer._target_=mylab.scorers.Whitened
      a class of your own
  python attribute.py --dry-run ...
      estimates rows, tokens, bytes, memory and time; nothing is run or written

The same `out` again resumes an interrupted run, or reuses the results of a finished one.
"""


def run(arguments: list[str]) -> None:
    from rept.config.compose import compose

    dry = "--dry-run" in arguments
    config = compose("attribute", [a for a in arguments if a != "--dry-run"])
    if dry:  # heavy imports follow once the command line is known to be right
        from rept.run.dry_run import estimate

        estimate(config)
    else:
        from rept.run.pipeline import attribute

        attribute(config)


if __name__ == "__main__":
    sys.exit(main("attribute", USAGE, run))
