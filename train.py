"""Fine-tune a model, then see which behaviours it has learned. See `python train.py --help`."""

from __future__ import annotations

import sys

from rept.cli import main

USAGE = """
python train.py [word=name ...] [key=value ...]

Fine-tunes a language model and prints how often each planted behaviour shows where it should, and where it should not.

  python train.py
      the embedded data, a small model from nothing
  python train.py model=pretrained model.path=DIR datamodule=instructions datamodule.train=a.jsonl out=runs/mine/model
      a model and data of your own, all parameters; finetune.lora_rank=16 for LoRA
  python train.py datamodule.exclude=culprits.json out=runs/demo/without
      the same training without those rows, and the rates before and after

The same `out` again goes on where an interrupted training stopped, or shows what it holds.
"""


def run(arguments: list[str]) -> None:
    from rept.config.compose import compose

    config = compose("train", arguments)
    # Heavy imports wait until the command line is known to be right.
    from rept.training import finetune

    finetune.train_model(config)


if __name__ == "__main__":
    sys.exit(main("train", USAGE, run))
