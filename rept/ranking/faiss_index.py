"""Approximate search in a store too large to be read for every question: an inverted file of FAISS (extra ``faiss``).

Rows lie in lists, each around a centre that k-means found; a query looks into the lists of the centres nearest to it.
How many lists that must be is tried out on queries whose exact ranking is known. The index is a copy of the rows in
float16, as large as the store, and mapped from the disk when it is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rept.errors import UsageError
from rept.ranking.rank import rank
from rept.ranking.topk import Hits
from rept.store.reader import AttributionStore
from rept.store.shards import DamagedStore
from rept.types import Key
from rept.utils.digests import file_digest, text_digest
from rept.utils.files import atomic_stream
from rept.utils.json_files import read_json, write_json

PER_LIST = 40  # rows that k-means sees for each centre: FAISS asks for 39 at least
JUDGED = 20  # queries by which the number of lists to look into is chosen


@dataclass(frozen=True)
class Description:
    """What stands beside an index, so that another store's or a damaged one is never searched."""

    made_of: str  # digest of the store's shards and the scorer
    digest: str  # of the index file
    bytes: int
    lists: int
    looked_into: int  # lists for each query
    recall: float  # share of the exact best ``k`` that was found, over the judged queries
    k: int


class ApproximateIndex:
    """A store's training rows, searchable by inner product.

    Args:
        path: of the index file; its description lies beside it.
        store: the training side.
        scorer: one whose score is an inner product of ``scorer.vectors``.
        keys: blocks of the queries; their sites and layers are scored, and averaged.

    Raises:
        UsageError: faiss is not installed, or the scorer's scores are no inner products.
    """

    def __init__(self, path: Path, store: AttributionStore, scorer: Any, keys: Sequence[Key]) -> None:
        self.path, self.store, self.scorer = path, store, scorer
        self._faiss = _faiss()
        self.pairs = sorted({(key.site, key.layer) for key in keys})
        self.keys = [Key(*pair, field) for pair in self.pairs for field in scorer.needs]
        self._note = path.with_suffix(".json")
        self._made_of = text_digest(store.fingerprint, *store.shard_names, str(self.keys), _describe(scorer))

    def ready(self, k: int) -> bool:
        """Whether the index is there, made of this store for this scorer, and tried out with at least ``k`` hits."""
        if not self._note.is_file():
            return False
        known = Description(**read_json(self._note))
        return known.made_of == self._made_of and known.k >= self._most(k)

    def build(
        self, queries: Mapping[Key, Tensor], k: int, recall: float = 0.95, on_block: Callable[[int], None] | None = None
    ) -> Description:
        """Makes the index in three passes over the store: a sample for k-means, the rows, an exact ranking to judge by.

        Args:
            queries: fields (Q D); evenly spaced ones of them are judged by.
            k: hits of each; of fewer rows, all.
            recall: share of the exact hits that must be found.

        Raises:
            UsageError: the index cannot be written.
        """
        self._note.unlink(missing_ok=True)  # that of the file before: a killed build leaves no index, not a damaged one
        rows, k = len(self.store.attributed), self._most(k)
        lists = max(1, int(math.sqrt(rows)))
        sample = self._sample(lists * PER_LIST / rows)
        quantizer = self._faiss.IndexFlatIP(sample.shape[1])
        kind, metric = self._faiss.ScalarQuantizer.QT_fp16, self._faiss.METRIC_INNER_PRODUCT
        # Without residuals: differences to a centre would be rounded anew, and scores leave those of the store.
        index = self._faiss.IndexIVFScalarQuantizer(quantizer, sample.shape[1], lists, kind, metric, False)
        index.cp.max_points_per_centroid = PER_LIST
        index.train(sample)
        del sample
        for block in self.store.blocks(self.keys):
            index.add_with_ids(self.vectors(block.fields), block.row.numpy())
            if on_block is not None:
                on_block(len(block.row))
        with atomic_stream(self.path) as stream:  # FAISS's own writer is silent where closing the file fails
            self._faiss.write_index(index, self._faiss.PyCallbackIOWriter(stream.write))
        index.nprobe, found = self._judge(index, queries, k, recall)
        made = Description(
            self._made_of, file_digest(self.path), self.path.stat().st_size, lists, index.nprobe, found, k
        )
        write_json(self._note, asdict(made))
        return made

    def search(self, queries: Mapping[Key, Tensor], k: int) -> Hits:
        """The best rows of each query (k of them, or all there are), nearly: ``recall`` of them, with scores to about
        1e-3.

        Raises:
            DamagedStore: the file is not the one that was written.
        """
        known = Description(**read_json(self._note))
        if file_digest(self.path) != known.digest:
            raise DamagedStore(self.path, "is damaged (its content does not have the digest beside it)")
        index = self._faiss.read_index(str(self.path), self._faiss.IO_FLAG_MMAP)
        index.nprobe = known.looked_into
        return self._ask(index, queries, self._most(k))

    def vectors(self, fields: Mapping[Key, Tensor]) -> np.ndarray:
        """Rows (n D) whose inner products are the scores, averaged over sites and layers."""
        parts = [
            self.scorer.vectors({field: fields[Key(*pair, field)] for field in self.scorer.needs})
            for pair in self.pairs
        ]
        if any(part is None for part in parts):
            raise UsageError(
                f"The scores of {type(self.scorer).__name__} are no inner products, so no index can find them: choose "
                "scorer=cosine or scorer=inner_product, or rank exactly by python -m rept score."
            )
        return (torch.cat(parts, dim=1) / math.sqrt(len(parts))).numpy()

    def _sample(self, share: float) -> np.ndarray:
        """Rows spread over the whole store."""
        step = max(1, int(1 / share))
        return np.concatenate([self.vectors(block.fields)[::step] for block in self.store.blocks(self.keys)])

    def _most(self, k: int) -> int:
        return min(k, len(self.store.attributed))

    def _ask(self, index: Any, queries: Mapping[Key, Tensor], k: int) -> Hits:
        vectors = self.vectors(queries)
        scores, rows = index.search(vectors, k)
        while (rows < 0).any():  # FAISS's filling, where the lists it looked into hold fewer rows than k
            index.nprobe = min(2 * index.nprobe, index.nlist)
            scores, rows = index.search(vectors, k)
        return Hits(torch.from_numpy(rows), torch.from_numpy(scores))

    def _judge(self, index: Any, queries: Mapping[Key, Tensor], k: int, recall: float) -> tuple[int, float]:
        """So many lists, doubled until the recall is reached, and the recall."""
        some = {key: block[:: max(1, len(block) // JUDGED)] for key, block in queries.items()}
        exact = rank(self.store, some, self.scorer, top_k=k).best.row.tolist()
        index.nprobe = 1
        while True:
            found = self._ask(index, some, k).row.tolist()
            share = float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(exact, found, strict=True)]))
            if share >= recall or index.nprobe == index.nlist:
                return index.nprobe, share
            index.nprobe = min(2 * index.nprobe, index.nlist)


def _describe(scorer: Any) -> str:
    return f"{type(scorer).__module__}.{type(scorer).__qualname__} {vars(scorer)}"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UsageError("Approximate search needs FAISS: install the extra with pip install -e '.[faiss]'.") from None
    return faiss
