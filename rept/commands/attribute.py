"""rept attribute: traces a model's answers to its training samples and the words in them."""

from __future__ import annotations

CONFIG = "attribute"
USAGE = """
rept attribute [word=name ...] [key=value ...] [--dry-run]

Traces the answers of a language model back to the training samples, and the words in them, that caused them.

  rept attribute
      the embedded data and model, offline
  rept attribute datamodule=instructions model.path=DIR datamodule.train=a.jsonl datamodule.queries=q.jsonl \\
      out=runs/mine
      your own model and data
  rept attribute extractor=mlp_output layers=fixed layers.layers=[4] scorer=inner_product trainer.devices=4
      other parts, more devices
  rept attribute scorer._target_=mylab.scorers.Whitened
      a class of your own
  rept attribute --dry-run ...
      estimates rows, tokens, bytes, memory and time; nothing is run or written

The same `out` again resumes an interrupted run, or reuses the results of a finished one. In a clone also
`python attribute.py`.
"""


def run(arguments: list[str]) -> None:
    from rept.config.compose import compose
    from rept.config.schema import AttributeConfig

    dry = "--dry-run" in arguments
    config = compose(AttributeConfig, [a for a in arguments if a != "--dry-run"])
    if dry:  # heavy imports follow once the command line is known to be right
        from rept.run.dry_run import estimate

        estimate(config)
    else:
        from rept.run.pipeline import attribute

        attribute(config)
