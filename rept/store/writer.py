"""StoreWriter: the Lightning callback that writes signatures to the store; ShardWriter: the files of one rank."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from rept.errors import UsageError
from rept.store.open_shard import OpenShard
from rept.store.shards import Shard, ShardName, check_shards, is_attributed, paths_of, read_shard
from rept.types import Extraction, Side, Signature
from rept.utils.digests import content_digest
from rept.utils.files import folder_errors, make_folder, publish
from rept.utils.tensors import unit_rows

SHARD_BYTES = 64 * 2**20  # of a shard, where store.shard_rows is not set


class StoreWriter(BasePredictionWriter):
    """Writes each predicted batch to the store; one shard writer a side on every rank.

    Complete batches are kept also when the prediction ends with an exception. Pass ``return_predictions=False`` to the
    trainer, or it keeps every signature in memory.

    Args:
        folder: the run's ``store`` folder.
        fingerprint: of all that the signatures depend on; shards of another are refused.
        dtype: of the stored unit rows, "float16" or "float32".
        shard_rows: rows of a shard; None: as many as take 64 MiB.
    """

    def __init__(
        self, folder: str | Path, fingerprint: str, dtype: str = "float16", shard_rows: int | None = None
    ) -> None:
        super().__init__(write_interval="batch")
        self._open = partial(ShardWriter, folder, fingerprint=fingerprint, dtype=dtype, shard_rows=shard_rows)
        self._writers: dict[Side, ShardWriter] = {}

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Extraction | None, *_: object
    ) -> None:
        if prediction is None:  # a step that a rank runs only because the model is split over several
            return
        side = prediction.side
        if side not in self._writers:
            self._writers[side] = self._open(side=side, rank=trainer.global_rank)
        self._writers[side].append(prediction.row, prediction.status, prediction.signature)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class ShardWriter:
    """Buffers the rows of one side on one rank, and writes them as shards that end where batches end.

    After an interruption a short last shard is replaced by a full one, and a removed shard is written again under its
    number. So an interrupted run leaves the same files, byte for byte, as an uninterrupted one. The arguments are those
    of `StoreWriter`; the rank is part of the shards' names.

    Raises:
        UsageError: the folder cannot be written, or the rank's last shard is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        side: Side,
        fingerprint: str,
        dtype: str = "float16",
        shard_rows: int | None = None,
        rank: int = 0,
    ) -> None:
        check_shards(dtype, shard_rows)
        self._folder = Path(folder) / side / "shards"
        self._side, self._fingerprint, self._rank = side, fingerprint, rank
        self._dtype, self._shard_rows = dtype, shard_rows
        self._open = OpenShard(side, fingerprint)
        self._make_folder()
        self._written = self._numbers()
        self._short = self._find_short()

    def append(self, rows: Tensor, status: Tensor, signature: Signature | None = None) -> None:
        """Adds a batch; writes a shard if that fills it.

        Args:
            rows: (n) row numbers.
            status: (n), see `Status`.
            signature: blocks (n D), zeros for rows that are not attributed; None or empty if none is.

        Raises:
            UsageError: the disk is full. The buffered rows are dropped: the next run recomputes them.
            ValueError: the blocks do not fit the rows, or are not finite.
        """
        part = self._part(rows, status, signature or {})
        if not len(self._open) and self._short is not None and self._next_number() == self._short[0]:
            self._open.append(self._short[1])
        self._open.append(part)
        if self._full(self._open.shard()):
            self._write()

    def close(self) -> None:
        """Writes the buffered rows as a shard, however short."""
        if len(self._open):
            self._write()

    def _part(self, rows: Tensor, status: Tensor, signature: Signature) -> Shard:
        row, codes = rows.cpu().numpy().astype(np.int64), status.cpu().numpy().astype(np.uint8)
        columns: dict[str, np.ndarray] = {"row": row, "status": codes}
        any_attributed = is_attributed(codes).any()
        if any_attributed and not signature:
            raise ValueError("expected a signature of each row that is attributed, but got none")
        for key, block in signature.items():
            columns |= zip(paths_of(key), unit_rows(block, self._dtype), strict=True)
        counts = {path: len(column) for path, column in columns.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"expected status and blocks of {len(row)} rows, but got {counts}")
        if not any_attributed:  # so that equal rows give equal shards on any rank
            columns = {"row": row, "status": codes}
        return Shard(self._side, self._fingerprint, columns)

    def _full(self, shard: Shard) -> bool:
        if self._shard_rows:
            return len(shard) >= self._shard_rows
        return len(shard) * shard.row_bytes >= SHARD_BYTES

    def _write(self) -> None:
        image = self._open.shard().image()
        number = self._next_number()
        path = self._folder / str(ShardName(self._rank, number, content_digest(image)))
        try:
            publish(path, image)
        except UsageError:
            self._open = OpenShard(self._side, self._fingerprint)  # the disk is full: closing must not try again
            raise
        if self._short is not None and number == self._short[0]:
            if self._written[number] != path:
                self._written[number].unlink(missing_ok=True)
            self._short = None
        self._written[number] = path
        self._open = OpenShard(self._side, self._fingerprint)

    def _next_number(self) -> int:
        """The first missing number, then the short last one, then the one after the last."""
        missing = next(number for number in range(len(self._written) + 1) if number not in self._written)
        return missing if self._short is None else min(missing, self._short[0])

    def _make_folder(self) -> None:
        make_folder(self._folder)
        with folder_errors(self._folder):
            for leftover in self._folder.glob(f".r{self._rank:03d}-*.partial"):  # of a run that was killed
                leftover.unlink()

    def _numbers(self) -> dict[int, Path]:
        """The rank's shards by number. A run killed while it replaced a short one leaves both; the longer is kept."""
        found: dict[int, Path] = {}
        for path in sorted(self._folder.glob(f"r{self._rank:03d}-*.h5")):
            name = ShardName.parse(path)
            if name is None:
                continue
            if name.number in found:
                old, path = sorted((found[name.number], path), key=lambda shard: shard.stat().st_size)
                old.unlink()
            found[name.number] = path
        return found

    def _find_short(self) -> tuple[int, Shard] | None:
        """The last shard and its number, where it is not full."""
        if not self._written:
            return None
        number = max(self._written)
        shard = read_shard(self._written[number], self._side, self._fingerprint)
        return None if self._full(shard) else (number, shard)
