"""RunFolder: the files of a run, and how they are written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rept.config.compose import read_config, to_yaml
from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.utils.environment import peak_memory
from rept.utils.files import make_folder
from rept.utils.json_files import read_json, write_json, write_text
from rept.utils.ranks import own_rank

SCHEMA = 2
LEFTOVERS = (".*.partial", ".scores-*", ".tokens-*", ".rank-*")  # of killed runs


class RunFolder:
    """The folder of one run.

    Only rank 0 writes the files named here; the store's shards are written by every rank. A file appears under its name
    whole: it is written beside it and renamed (the figures, which can be made anew, are not).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.store = self.path / "store"
        self.config = self.path / "config.yaml"
        self.provenance = self.path / "provenance.json"
        self.queries = self.path / "queries.jsonl"
        self.layers = self.path / "layers.json"
        self.results = self.path / "results.jsonl"
        self.opponents = self.path / "opponents.jsonl"
        self.tokens = self.path / "tokens.jsonl"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"
        self.figures = self.path / "figures"
        self.samples = self.path / "samples"
        self.approximate = self.path / "approximate.faiss"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this run. The lock is the operating system's, so it ends with its process.

        Whoever holds it removes what killed runs have left.

        Raises:
            UsageError: another run holds it, or the folder cannot be written.
        """
        if own_rank():  # another rank of the same run
            yield
            return
        lock = FileLock(self.path / ".lock", blocking=False)
        try:
            make_folder(self.path)
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"{self.path} is in use by another run; wait for it, or name another folder by out=."
            ) from None
        except OSError as error:
            raise UsageError(
                f"The run folder {self.path} cannot be written ({error.strerror}); name another by out=."
            ) from None
        with lock:
            for leftover in LEFTOVERS:
                for path in self.path.glob(leftover):
                    path.unlink()
            yield

    def open_existing(self) -> AttributeConfig:
        """The configuration of a run that was made before.

        Raises:
            UsageError: there is no run in the folder, or one of another schema.
        """
        if not self.config.is_file():
            raise UsageError(f"Expected {self.path} to be a run folder, but it holds no config.yaml.")
        self.description()  # refused where its schema is another
        return read_config(self.config)

    def write_config(self, config: AttributeConfig) -> None:
        write_text(self.config, to_yaml(config))

    def description(self) -> dict[str, Any]:
        """What provenance.json says; empty where rank 0, who writes it, has not begun: another rank may be faster.

        Raises:
            UsageError: the folder was made by a version of RepT that lays out runs differently.
        """
        known = read_json(self.provenance) if self.provenance.is_file() else {}
        if (schema := known.get("schema", SCHEMA)) != SCHEMA:
            raise UsageError(
                f"Expected {self.path} to be a run folder of schema {SCHEMA}, but got schema {schema}, which another "
                "version of RepT wrote. Use that version, or run again with another out=."
            )
        return known

    def describe(self, **parts: Any) -> None:
        """Lays ``parts`` over provenance.json."""
        write_json(self.provenance, {"schema": SCHEMA} | self.description() | parts)

    def copy_description(self, source: RunFolder) -> None:
        """Takes over what another run says of its model, queries and layers."""
        for name in ("provenance", "queries", "layers"):
            write_text(getattr(self, name), getattr(source, name).read_text(encoding="utf-8"))

    def alone(self, site: str, layer: int | str) -> Path:
        """The hits by one site and layer alone."""
        return self.path / f"results-{site}-{layer}.jsonl"

    def forget_ranking(self) -> None:
        """Removes what was made from a ranking that is now replaced, so that nothing old is read beside the new one.

        First metrics.json, without which the run counts as unfinished until the new one is written.
        """
        alone = self.path.glob(self.alone("*", "*").name)
        for path in (self.metrics, self.opponents, self.tokens, self.report, *alone):
            path.unlink(missing_ok=True)

    @contextmanager
    def stage(self, name: str, keep: bool = False) -> Iterator[None]:
        """Adds the seconds (by the clock, and the processor's) and the process's peak memory to provenance.json.

        ``keep``: where there are figures already they stay, for a stage that finds its work done before.
        """
        start, cpu = time.perf_counter(), time.process_time()
        yield
        known = self.description().get("stages", {})
        if keep and name in known:
            return
        figures = {
            "seconds": round(time.perf_counter() - start, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "peak_memory_bytes": peak_memory(),
        }
        self.describe(stages=known | {name: figures})
