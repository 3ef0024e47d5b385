"""RunFolder: the files of a run, and how they are written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rept.config.compose import read_config, to_yaml
from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.utils.environment import peak_memory
from rept.utils.files import lock_folder
from rept.utils.json_files import read_json, read_jsonl, write_json, write_text

SCHEMA = 2
LEFTOVERS = (".*.partial", ".scores-*", ".tokens-*")  # of killed runs


class RunFolder:
    """The folder of one run.

    Only rank 0 writes the files named here; the store's shards are written by every rank. Files are written under
    another name and renamed when they are complete, except for the figures, which can be made again.
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
        self.behaviours = self.path / "behaviours.jsonl"
        self.tokens = self.path / "tokens.jsonl"
        self.words = self.path / "words.jsonl"
        self.repair = self.path / "repair"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"
        self.figures = self.path / "figures"
        self.samples = self.path / "samples"
        self.approximate = self.path / "approximate.faiss"

    def lock(self) -> AbstractContextManager[None]:
        """Locks the folder for this run, see `rept.utils.files.lock_folder`."""
        return lock_folder(self.path, LEFTOVERS)

    def open_existing(self) -> AttributeConfig:
        """The configuration of an earlier run; raises UsageError if there is none, or one of another schema."""
        if not self.config.is_file():
            raise UsageError(f"Expected {self.path} to be a run folder, but it has no config.yaml.")
        self.read_provenance()  # checks the schema
        return read_config(self.config, AttributeConfig)

    def write_config(self, config: AttributeConfig) -> None:
        write_text(self.config, to_yaml(config))

    def read_provenance(self) -> dict[str, Any]:
        """The content of provenance.json; empty before rank 0 has written it, as other ranks may be faster.

        Raises UsageError if the folder has another schema.
        """
        known = read_json(self.provenance) if self.provenance.is_file() else {}
        if (schema := known.get("schema", SCHEMA)) != SCHEMA:
            raise UsageError(
                f"Expected {self.path} to be a run folder of schema {SCHEMA}, but got schema {schema}, which another "
                "version of RepT wrote. Use that version, or run again with another out=."
            )
        return known

    def known_answers(self) -> dict[int, str]:
        """The answers that the run's model gave, by query."""
        return {line["query"]: line["response"] for line in read_jsonl(self.queries) if line["generated"]}

    def update_provenance(self, **parts: Any) -> None:
        """Adds ``parts`` to provenance.json, in place of those of the same name."""
        write_json(self.provenance, {"schema": SCHEMA} | self.read_provenance() | parts)

    def copy_provenance(self, source: RunFolder) -> None:
        """Copies provenance, queries and layers of the run whose signatures are ranked here, whose path is recorded."""
        self.update_provenance(**source.read_provenance() | {"ranked_from": str(source.path)})
        for name in ("queries", "layers"):
            write_text(getattr(self, name), getattr(source, name).read_text(encoding="utf-8"))

    def check_replaceable(self) -> None:
        """Raises UsageError if there are files here that were not made by ranking another run's signatures."""
        if not self.path.is_dir() or "ranked_from" in self.read_provenance():
            return
        if others := sorted(path.name for path in self.path.iterdir() if not path.name.startswith(".")):
            raise UsageError(
                f"Expected out={self.path} to be a new folder or one with earlier results of this command, but it has "
                f"other files, such as {others[0]}: name another folder."
            )

    def results_of(self, site: str, layer: int | str) -> Path:
        """The file of the hits by one site and layer alone."""
        return self.path / f"results-{site}-{layer}.jsonl"

    def remove_ranking(self) -> None:
        """Removes what was made from an earlier ranking, so that only files of the new one are read together.

        metrics.json is removed first: without it the run counts as unfinished until the new one is written.
        """
        single = self.path.glob(self.results_of("*", "*").name)
        for path in (self.metrics, self.opponents, self.behaviours, self.tokens, self.words, self.report, *single):
            path.unlink(missing_ok=True)

    @contextmanager
    def stage(self, name: str, keep: bool = False) -> Iterator[None]:
        """Adds a stage's wall-clock and CPU seconds and the peak memory of the process to provenance.json.

        With ``keep``, figures that are there stay, for a stage whose work an earlier run has done.
        """
        start, cpu = time.perf_counter(), time.process_time()
        yield
        known = self.read_provenance().get("stages", {})
        if keep and name in known:
            return
        figures = {
            "seconds": round(time.perf_counter() - start, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "peak_memory_bytes": peak_memory(),
        }
        self.update_provenance(stages=known | {name: figures})
