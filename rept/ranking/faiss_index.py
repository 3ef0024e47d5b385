"""Approximate search in a store too large to be read for every search: an inverted file of FAISS (extra ``faiss``).

Rows are in lists around centres that k-means found, and a search reads the lists of the centres nearest to the query.
Their number is tuned on queries whose exact ranking is known. The index is a copy of the rows in float16, as large as
the store, and mapped from the disk when it is searched.
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
from rept.ranking.scorer import Scorer
from rept.ranking.topk import Hits
from rept.store.reader import AttributionStore
from rept.types import Key
from rept.utils.digests import file_digest, text_digest
from rept.utils.files import atomic_stream
from rept.utils.json_files import read_json, write_json

PER_LIST = 40  # rows that k-means gets for each centre: FAISS requires 39
TUNING_QUERIES = 20  # by which the number of lists to search is chosen


@dataclass(frozen=True)
class Description:
    """The description of an index, in a JSON file of the same name."""

    made_of: str  # digest of the store's shards and the scorer
    digest: str  # of the index file
    bytes: int
    changed_ns: int  # the file's time of change when it was digested
    lists: int
    searched_lists: int  # for each query
    recall: float  # share of the exact best ``k`` that was found, over the tuning queries
    k: int
    scale: float  # of the rows in the index, so that float16 can hold them


class ApproximateIndex:
    """A store's training rows, searchable by inner product.

    The file is digested when it is built, and again only where its size or time of change differ from then: any later
    write is noticed, and a search does not read the whole index. Silent faults of the disk are not noticed.

    Args:
        path: of the index file; its description is beside it.
        store: of the training rows.
        scorer: one whose score is an inner product of ``scorer.vectors``.
        keys: blocks of the queries; their sites and layers are scored, and averaged.

    Raises:
        UsageError: faiss is not installed.
    """

    def __init__(self, path: Path, store: AttributionStore, scorer: Scorer, keys: Sequence[Key]) -> None:
        self.path, self.store, self.scorer = path, store, scorer
        self._faiss = _faiss()
        self._places = sorted({(key.site, key.layer) for key in keys})
        self.keys = [Key(*place, field) for place in self._places for field in scorer.needs]
        self._note = path.with_suffix(".json")
        settings = f"{type(scorer).__module__}.{type(scorer).__qualname__} {vars(scorer)}"
        self._made_of = text_digest(store.fingerprint, *store.shard_names, str(self.keys), settings)

    def ready(self, k: int) -> bool:
        """Whether the index exists, was made of this store for this scorer, and was tuned for at least ``k`` hits."""
        known = self._description()
        return known is not None and known.made_of == self._made_of and known.k >= self._most(k)

    def build(
        self, queries: Mapping[Key, Tensor], k: int, recall: float = 0.95, on_block: Callable[[int], None] | None = None
    ) -> Description:
        """Builds the index in three passes over the store: a sample for k-means, the rows, an exact ranking for tuning.

        Args:
            queries: fields (Q D); a few evenly spaced ones are used for tuning.
            k: hits of each; all rows if there are fewer.
            recall: share of the exact hits that must be found.

        Raises:
            UsageError: the index cannot be written, or the scorer's scores are not inner products.
        """
        self._note.unlink(missing_ok=True)  # first: a killed build leaves no index rather than a damaged one
        rows, k = len(self.store.attributed), self._most(k)
        lists = max(1, int(math.sqrt(rows)))
        step = max(1, rows // (lists * PER_LIST))  # rows spread over the whole store
        parts, largest = [], 0.0
        for block in self.store.blocks(self.keys):
            vectors = self.vectors(block.fields)
            parts.append(vectors[::step].copy())
            largest = max(largest, float(abs(vectors).max()))
        scale = math.ldexp(1.0, 15 - math.frexp(largest)[1])  # a power of 2: no rounding
        sample = np.concatenate(parts) * np.float32(scale)
        del parts
        quantizer = self._faiss.IndexFlatIP(sample.shape[1])
        kind, metric = self._faiss.ScalarQuantizer.QT_fp16, self._faiss.METRIC_INNER_PRODUCT
        # Without residuals: differences to a centre would be rounded again, and scores would differ from the store's.
        index = self._faiss.IndexIVFScalarQuantizer(quantizer, sample.shape[1], lists, kind, metric, False)
        index.cp.max_points_per_centroid = PER_LIST
        index.train(sample)
        del sample
        for block in self.store.blocks(self.keys):
            index.add_with_ids(self.vectors(block.fields) * np.float32(scale), block.row.numpy())
            if on_block is not None:
                on_block(len(block.row))
        with atomic_stream(self.path) as stream:  # FAISS's own writer does not report a failure to close the file
            self._faiss.write_index(index, self._faiss.PyCallbackIOWriter(stream.write))
        written = self.path.stat()
        index.nprobe, found = self._tune(index, queries, k, recall)
        file = (file_digest(self.path), written.st_size, written.st_mtime_ns)
        made = Description(self._made_of, *file, lists, index.nprobe, found, k, scale)
        write_json(self._note, asdict(made))
        return made

    def search(self, queries: Mapping[Key, Tensor], k: int) -> Hits:
        """About ``recall`` of the best rows of each query (k of them, or all), with scores to about 1e-3.

        Raises:
            UsageError: there is no index, or the file was changed after it was built.
        """
        known = self._description()
        if known is None:
            raise UsageError(f"Expected an index at {self.path}, but got none: build it first.")
        found = self.path.stat()
        unchanged = (found.st_size, found.st_mtime_ns) == (known.bytes, known.changed_ns)
        if not unchanged and file_digest(self.path) != known.digest:
            raise UsageError(
                f"{self.path} is damaged (its content does not have the digest in {self._note.name}); delete it and "
                "give the same command again to rebuild it."
            )
        index = self._faiss.read_index(str(self.path), self._faiss.IO_FLAG_MMAP)
        index.nprobe = known.searched_lists
        hits = self._search(index, queries, self._most(k))
        return Hits(hits.row, hits.score / known.scale)

    def vectors(self, fields: Mapping[Key, Tensor]) -> np.ndarray:
        """Rows (n D) whose inner products are the scores, averaged over sites and layers."""
        parts = []
        for place in self._places:
            part = self.scorer.vectors({field: fields[Key(*place, field)] for field in self.scorer.needs})
            if part is None:
                raise UsageError(
                    f"The scores of {type(self.scorer).__name__} are not inner products, so no index can find them: "
                    "choose scorer=cosine or scorer=inner_product, or rank exactly by python -m rept score."
                )
            parts.append(part)
        return (torch.cat(parts, dim=1) / math.sqrt(len(parts))).numpy()

    def _description(self) -> Description | None:
        """None where there is no index, or one of an older version."""
        if not (self._note.is_file() and self.path.is_file()):
            return None
        try:
            return Description(**read_json(self._note))
        except TypeError:
            return None

    def _most(self, k: int) -> int:
        return min(k, len(self.store.attributed))

    def _search(self, index: Any, queries: Mapping[Key, Tensor], k: int) -> Hits:
        vectors = self.vectors(queries)
        scores, rows = index.search(vectors, k)
        while (rows < 0).any():  # FAISS's filler, where the lists that it searched have fewer rows than k
            index.nprobe = min(2 * index.nprobe, index.nlist)
            scores, rows = index.search(vectors, k)
        return Hits(torch.from_numpy(rows), torch.from_numpy(scores))

    def _tune(self, index: Any, queries: Mapping[Key, Tensor], k: int, recall: float) -> tuple[int, float]:
        """The number of lists to search, doubled until the recall is reached, and that recall."""
        some = {key: block[:: max(1, len(block) // TUNING_QUERIES)] for key, block in queries.items()}
        exact = rank(self.store, some, self.scorer, top_k=k).best.row.tolist()
        index.nprobe = 1
        while True:
            found = self._search(index, some, k).row.tolist()
            share = float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(exact, found, strict=True)]))
            if share >= recall or index.nprobe == index.nlist:
                return index.nprobe, share
            index.nprobe = min(2 * index.nprobe, index.nlist)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UsageError("Approximate search needs FAISS: pip install faiss-cpu (extra `faiss`).") from None
    return faiss
