"""The interface of a scorer, and a check of its arguments; defined in `rept.ranking.scorer`."""

from rept.ranking.scorer import Scorer, check_pair

__all__ = ["Scorer", "check_pair"]
