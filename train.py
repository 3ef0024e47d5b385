"""Fine-tunes a model and reports which behaviours it has learned. See `python train.py --help`."""

from __future__ import annotations

import sys

from rept.cli import main

USAGE = """
python train.py [word=name ...] [key=value ...]

Fine-tunes a language model and prints how often each planted behaviour shows where it should, and where it should not.

  python train.py
      the embedded data, a new small model
  python train.py model=pretrained model.path=DIR datamodule=instructions datamodule.train=a.jsonl out=runs/mine/model
      a model and data of your own, all parameters; finetune.lora_rank=16 for LoRA
  python train.py datamodule.exclude=culprits.json out=runs/demo/without
      the same training without those rows, and the rates before and after

The same `out` again resumes an interrupted training, or shows the result of a finished one.
"""


def run(arguments: list[str]) -> None:
    from rept.config.compose import compose

    config = compose("train", arguments)
    from rept.training.finetune import train_model  # heavy, so imported once the command line is known to be right

    train_model(config)


if __name__ == "__main__":
    sys.exit(main("train", USAGE, run))
