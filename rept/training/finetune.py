"""Fine-tuning: the Lightning module, and a whole training as one call."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from rept.config.plug_ins import build
from rept.config.schema import TARGET, TrainConfig
from rept.data.behaviours import Behaviour, how_counted
from rept.data.datamodule import AttributionDataModule
from rept.errors import Stopped, UsageError
from rept.model.hooks import Response, sample_losses
from rept.signatures.fingerprint import of_weights
from rept.training.batches import TrainingBatches, TrainingRows
from rept.training.behaviour_rates import ask_behaviours, rates_as_json, rates_before, read_rates, show_rates
from rept.training.hyperparameters import Hyperparameters
from rept.training.initial_model import initial_model, trainable
from rept.training.model_folder import ModelFolder
from rept.training.trainer import build_trainer
from rept.types import Batch, PreTrainedModel
from rept.utils.console import say
from rept.utils.environment import environment
from rept.utils.files import lock_folder
from rept.utils.library_logging import quiet
from rept.utils.progress_callback import ShowProgress
from rept.utils.ranks import own_rank
from rept.utils.text import format_count

ANSWER_TOKENS = 32  # of a held-out prompt's answer: enough to see whether a behaviour shows


class FinetuneModule(LightningModule):
    """Trains a causal language model on the responses of a data set.

    The loss is the mean over a batch of each sample's own mean cross-entropy over its response tokens. So every sample
    has the same weight whatever its length, and attribution differentiates the very loss that was trained.

    The same seed gives the same weights, also after an interruption: batches are a function of seed and epoch, and each
    batch seeds the generator of dropout. The model is trained in place; a checkpoint contains only the parameters that
    are trained.
    """

    strict_loading = False  # checkpoints leave frozen parameters out

    def __init__(
        self, model: PreTrainedModel, rows: TrainingRows, hyperparameters: Hyperparameters, seed: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.rows = rows
        self.hyperparameters = hyperparameters
        self.seed = seed
        self.losses: list[float] = []  # mean training loss of each epoch
        self._epoch_losses: list[Tensor] = []
        self._position = {"drawn": 0}

    def train_dataloader(self) -> TrainingBatches:
        ranks = (self.trainer.global_rank, self.trainer.world_size)
        self._batches = TrainingBatches(self.rows, self.hyperparameters.batch_size, self.seed, *ranks)
        # Lightning would set the position itself, but not if the number of steps was requested before, as it is here.
        self._batches.load_state_dict(self._position)
        return self._batches

    def on_fit_start(self) -> None:
        self.model.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        number = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        torch.manual_seed((self.seed + 1) * 1_000_003 + number * self.trainer.world_size + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = sample_losses(self.model, batch.input_ids, Response.of(batch.labels)).mean()
        self._epoch_losses.append(loss.detach())
        self.log("loss", loss.detach(), batch_size=len(batch))
        return loss

    def on_train_epoch_end(self) -> None:
        self.losses.append(torch.stack(self._epoch_losses).cpu().mean().item())
        self._epoch_losses.clear()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.hyperparameters.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},  # norms and biases
        ]
        rate, warmup = self.hyperparameters.learning_rate, self.hyperparameters.warmup
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_share(step, steps, warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {f"model.{name}" for name, p in self.model.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["position"] = self._batches.state_dict()
        checkpoint["losses"], checkpoint["epoch_losses"] = self.losses, self._epoch_losses

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "position" not in checkpoint:
            raise UsageError("Expected a checkpoint of train.py, but this one has no position in the training data.")
        self._position = checkpoint["position"]
        self.losses, self._epoch_losses = list(checkpoint["losses"]), list(checkpoint["epoch_losses"])


def _rate_share(step: int, steps: float, warmup: float) -> float:
    """The share of the learning rate at a step: linear from 0 over the warmup, then linear to 0 after the last step."""
    rising = max(1, round(warmup * steps))
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising))


def train_model(config: TrainConfig, behaviours: Sequence[Behaviour] | None = None) -> None:
    """Trains and saves a model, and prints how often it shows each behaviour on held-out prompts.

    The same configuration again resumes an interrupted training, or prints the rates of the finished one.

    Args:
        behaviours: tested instead of those of the data; their rates are not printed.

    Raises:
        UsageError: an invalid setting; ``out`` contains a model that was trained with other settings, or
            ``compare_with`` one of another recipe.
        Stopped: Ctrl-C or SIGTERM during training.
    """
    quiet()
    seed_everything(config.seed, verbose=False)
    hyperparameters = Hyperparameters(**config.finetune)
    datamodule = build(config.datamodule, AttributionDataModule)
    if config.datamodule.get("exclude"):  # a file may have other rows when it is read again
        config = replace(config, datamodule=config.datamodule | {"exclude": sorted(datamodule.excluded)})
    folder, earlier, counted = ModelFolder(config.out), rates_before(config, datamodule), ""
    with lock_folder(folder.path):
        folder.begin(config)
        if folder.complete:
            say(f"{folder.path} already holds this model.")
        else:
            asked = datamodule.behaviours() if behaviours is None else behaviours
            _train(config, hyperparameters, datamodule, asked, folder)
            counted = how_counted(asked)
        if own_rank() == 0 and behaviours is None:
            show_rates(read_rates(folder.behaviours), earlier)
            if counted:
                say(counted)


def _train(
    config: TrainConfig,
    hyperparameters: Hyperparameters,
    datamodule: AttributionDataModule,
    behaviours: Sequence[Behaviour],
    folder: ModelFolder,
) -> None:
    model, tokenizer = initial_model(config.model, datamodule)
    base_weights = None if TARGET in config.model else of_weights(model)
    datamodule.attach(tokenizer)
    rows = TrainingRows(datamodule)
    module = FinetuneModule(trainable(model, hyperparameters), rows, hyperparameters, config.seed)
    trainer = _trainer(config, hyperparameters, folder)
    seconds = _fit(trainer, module, _checkpoint(config, folder))
    if not trainer.is_global_zero:
        return
    aside = "".join(f"; {count:,} set aside: {reason}" for reason, count in rows.set_aside.items())
    say(f"Trained on {format_count(len(rows), 'row')} in {seconds:.0f} s, loss {module.losses[-1]:.3f}{aside}.")
    trained = module.model
    trained.eval().to(trainer.strategy.root_device)
    rates, answers = ask_behaviours(trained, tokenizer, datamodule.encoder, behaviours, ANSWER_TOKENS)
    record = {
        "recipe": asdict(hyperparameters),
        "rows": len(rows),
        "excluded": len(datamodule.excluded),
        "set_aside": dict(rows.set_aside),
        "base_weights": base_weights,
        "parameters": sum(p.numel() for p in trained.parameters()),
        "trained_parameters": sum(p.numel() for p in trained.parameters() if p.requires_grad),
        "losses": module.losses,
        "seconds": round(seconds, 3),
        **environment(config.seed, trainer.world_size),
    }
    trained.cpu()
    folder.finish(trained, tokenizer, trainer.optimizers[0], record, rates_as_json(rates), answers)


def _fit(trainer: Trainer, module: FinetuneModule, checkpoint: Path | None) -> float:
    """Trains; returns the seconds. Raises as `train_model`, also for a checkpoint that would have to be unpickled."""
    begin = time.perf_counter()
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except UnpicklingError as error:
        assert checkpoint is not None
        raise _damaged(checkpoint) from error
    except SystemExit as exit:  # Lightning's reaction to a signal, with exit codes of its own
        if not trainer.interrupted:
            raise
        raise Stopped(signal.SIGTERM if isinstance(exit, SIGTERMException) else signal.SIGINT) from None
    finally:
        torch.use_deterministic_algorithms(False)  # Lightning leaves on what trainer.deterministic switched on
    return time.perf_counter() - begin


def _trainer(config: TrainConfig, hyperparameters: Hyperparameters, folder: ModelFolder) -> Trainer:
    """The configured trainer with our progress and checkpoint.

    Raises UsageError for arguments that Lightning refuses, no end of training, or a strategy that shards parameters.
    """
    settings = config.trainer | {"logger": config.trainer.get("logger") or False}
    callbacks = [build(node, Callback) for node in settings.pop("callbacks", None) or ()]
    if settings.get("enable_checkpointing", True):
        steps = hyperparameters.checkpoint_steps
        callbacks.append(
            ModelCheckpoint(folder.checkpoints, "last", enable_version_counter=False, every_n_train_steps=steps)
        )
    callbacks.append(ShowProgress("Training", unit="steps"))
    trainer = build_trainer(settings, callbacks=callbacks, default_root_dir=folder.path)
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        name = type(trainer.strategy).__name__
        raise UsageError(f"trainer.strategy: {name} shards the parameters, which cannot be saved here; use ddp.")
    if trainer.max_epochs in (None, -1) and trainer.max_steps == -1:
        raise UsageError("Expected trainer.max_epochs or trainer.max_steps, so that the learning rate can decay.")
    if 0 in (trainer.max_epochs, trainer.max_steps):
        raise UsageError("Expected trainer.max_epochs and trainer.max_steps to be at least 1, but got 0: no training.")
    return trainer


def _checkpoint(config: TrainConfig, folder: ModelFolder) -> Path | None:
    """The configured checkpoint, or the folder's own if there is one; raises UsageError if it cannot be read."""
    path = Path(config.resume).expanduser() if config.resume else folder.last_checkpoint
    if not path.is_file():
        if not config.resume:
            return None
        raise UsageError(f"resume={config.resume} is not a checkpoint file of Lightning; {path} does not exist.")
    if not is_zipfile(path):  # torch's format; a truncated file is not one
        raise _damaged(path)
    if not config.resume:
        say(f"Resuming from {path}.")
    return path


def _damaged(checkpoint: Path) -> UsageError:
    return UsageError(
        f"Expected {checkpoint} to be a checkpoint of train.py, but it is damaged or holds more than tensors and "
        "numbers; delete it to start from scratch, or name another by resume=."
    )
