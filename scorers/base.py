"""What a scorer is: the interface, and a check of its arguments."""

from rept.ranking.scorer import FIELDS, Scorer, check_pair

__all__ = ["FIELDS", "Scorer", "check_pair"]
