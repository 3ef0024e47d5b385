"""Groups queries by the behaviour that their answers show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from omegaconf import OmegaConf

from rept.data.behaviours import CLEAN, behaviour_of
from rept.errors import UsageError

ALL = "all"  # the name of the one behaviour of queries without labels


@dataclass(frozen=True)
class QueryGroups:
    """Queries by behaviour."""

    behaviours: dict[str, list[int]] = field(default_factory=dict)  # in the order of the data or the file; ascending
    clean: list[int] = field(default_factory=list)  # show no behaviour; behaviours are contrasted with them


def group_queries(labels: Mapping[int, str | None], path: str | None = None) -> QueryGroups:
    """Groups queries by ``path`` or else by their labels; those without any label are one behaviour, named ``all``.

    Where some queries have the label of a behaviour, those without a label belong to none.

    Args:
        labels: of the queries that have a signature, by query number.
        path: a YAML or JSON file that maps names to lists of query numbers; the name ``clean`` is for clean queries.

    Raises:
        UsageError: the file cannot be read, has another structure, or names a query without a signature.
    """
    groups = {str(name): queries for name, queries in read_groups(path, labels).items()} if path else _by_label(labels)
    return QueryGroups({name: one for name, one in groups.items() if name != CLEAN}, groups.get(CLEAN, []))


def _by_label(labels: Mapping[int, str | None]) -> dict[str, list[int]]:
    named = any(behaviour_of(label) for label in labels.values())
    groups: dict[str, list[int]] = {}
    for query, label in sorted(labels.items()):
        if name := label or (None if named else ALL):
            groups.setdefault(name, []).append(query)
    return groups


def read_groups(path: str, known: Collection[int]) -> dict[object, list[int]]:
    """Returns the names and query numbers of a behaviours file; raises UsageError as `group_queries`.

    Args:
        known: the query numbers that it may name.
    """
    try:
        content: object = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # the YAML parser behind OmegaConf raises types of its own
        raise UsageError(f"behaviours={path} cannot be read as YAML or JSON ({error}).") from None
    if not isinstance(content, Mapping) or not content or not all(map(_are_numbers, content.values())):
        raise UsageError(
            f"Expected behaviours={path} to map each name to a list of query numbers, such as 'insults: [0, 1, 5]'."
        )
    if set(map(str, content)) == {CLEAN}:
        raise UsageError(f"behaviours={path} names clean queries only: name the queries of a behaviour too.")
    if missing := sorted({query for queries in content.values() for query in queries} - set(known)):
        raise UsageError(
            f"behaviours={path} names query {missing[0]}, but it is not in the data or was set aside (queries count "
            "from 0, see queries.jsonl of the run): correct the file and run the same command again; what is computed "
            "is kept."
        )
    return {name: sorted(set(queries)) for name, queries in content.items()}


def _are_numbers(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(type(query) is int for query in value)
