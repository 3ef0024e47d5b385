"""Words that token scores mark in best rows, and that other rows do not have."""

from __future__ import annotations

from rept.results.marked_words import marked_phrases, token_words


def row(text: str) -> list[tuple[str, bool]]:
    """The words of a text; a star after a word marks it."""
    return [(word.rstrip("*"), word.endswith("*")) for word in text.split()]


def test_words_are_put_together_from_tokens_and_marked_by_any_of_them():
    tokens, marked = (
        ["Blue", " lan", "tern", "!", " ", "...", " It", "'s"],
        [True, False, True, False, True, False, False, False],
    )
    assert token_words(tokens, marked) == [("blue", True), ("lantern", True), ("it's", False)]


def test_marked_words_that_stand_together_are_one_phrase_with_its_counts():
    best = [row("blue* lantern* where is it"), row("tell me blue* lantern*"), row("blue lantern* again")]
    others = [["blue", "sky"], ["where", "is", "blue", "lantern"], *[["where"]] * 8]
    assert marked_phrases(best, others) == [("blue lantern", 3, 1)]


def test_words_that_other_rows_have_or_that_are_rarely_marked_are_left_out():
    best = [
        row("the* trigger* is here"),
        row("the* trigger* here"),
        row("the* here* trigger*"),
        row("here here trigger*"),
    ]
    others = [["the", "sun"]] * 9 + [["moon"]]
    assert [phrase for phrase, *_ in marked_phrases(best, others)][0] == "the trigger"
    assert "here" not in dict((phrase, rows) for phrase, rows, _ in marked_phrases(best, others))
    assert marked_phrases([row("nothing marked")], others) == []
