"""rept train: fine-tunes a model and reports which behaviours it has learned."""

from __future__ import annotations

CONFIG = "train"
USAGE = """
rept train [word=name ...] [key=value ...]

Fine-tunes a language model and prints how often each planted behaviour shows where it should, and where it should not.

  rept train
      the embedded data, a new small model
  rept train model=pretrained model.path=DIR datamodule=instructions datamodule.train=a.jsonl out=runs/mine/model
      a model and data of your own, all parameters; finetune.lora_rank=16 for LoRA
  rept train datamodule.exclude=culprits.json out=runs/demo/without
      the same training without those rows, and the rates before and after

The same `out` again resumes an interrupted training, or shows the result of a finished one. In a clone also
`python train.py`.
"""


def run(arguments: list[str]) -> None:
    from rept.config.compose import compose
    from rept.config.schema import TrainConfig

    config = compose(TrainConfig, arguments)
    from rept.training.finetune import train_model  # heavy, so imported once the command line is known to be right

    train_model(config)
