"""Which training samples, and which words in them, taught the model what it does? See `python attribute.py --help`."""

from __future__ import annotations

import sys

from rept.cli import main

USAGE = """
python attribute.py [word=name ...] [key=value ...] [--dry-run]

Traces a language model's answers back to the training samples, and to the words in them, that caused them.

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
      rows, tokens, bytes, memory and time to expect; runs nothing long

The same `out` again resumes the run, or reuses what it holds.
"""


def run(arguments: list[str]) -> None:
    from rept.config.compose import compose

    dry = "--dry-run" in arguments
    config = compose("attribute", [a for a in arguments if a != "--dry-run"])
    # Heavy imports wait until the command line is known to be right.
    if dry:
        from rept.run.dry_run import estimate

        estimate(config)
    else:
        from rept.run.pipeline import attribute

        attribute(config)


if __name__ == "__main__":
    sys.exit(main("attribute", USAGE, run))
