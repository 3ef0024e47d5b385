"""Unsafe characters: which they are, and how the terminal and HTML show them."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest

from rept.results.html_text import format_number, visible_html
from rept.utils.text import UNSAFE, clip, format_count, visible, words_in

SAFE_FORMAT = set("\n\t\u200c\u200d")


def test_unsafe_are_the_control_format_surrogate_and_separator_characters() -> None:
    """The list may only exceed Python's tables by what these do not know yet."""
    everything = map(chr, range(sys.maxunicode + 1))
    category = {character: unicodedata.category(character) for character in everything}
    expected = {c for c, name in category.items() if name in ("Cc", "Cf", "Cs", "Zl", "Zp")} - SAFE_FORMAT
    listed = set(re.findall(UNSAFE, "".join(category)))
    assert expected <= listed
    assert {category[character] for character in listed - expected} <= {"Cn"}


@pytest.mark.parametrize(
    ("text", "terminal", "html"),
    [
        ("<b>&\n", "<b>&\n", "&lt;b&gt;&amp;\n"),
        ("\x1b[31m", "\\u{1b}[31m", '<span class="unseen">U+001B</span>[31m'),
        ("\u202egnp", "\\u{202e}gnp", '<span class="unseen">U+202E</span>gnp'),
        ("a\r\nb\rc", "a\nb\\u{d}c", 'a\nb<span class="unseen">CR</span>c'),
        ("\ud800", "\\u{d800}", '<span class="unseen">U+D800</span>'),
        ("\U000e0041", "\\u{e0041}", '<span class="unseen">U+E0041</span>'),
        ("👨\u200d👩", "👨\u200d👩", "👨\u200d👩"),
        ("a\tb", "a b", "a\tb"),
    ],
)
def test_terminal_and_html_replace_the_same_characters(text: str, terminal: str, html: str) -> None:
    assert (visible(text), visible_html(text)) == (terminal, html)


def test_clipped_text_is_one_line_of_at_most_the_width() -> None:
    assert clip("a  b\nc", 5) == "a b c"
    assert clip("abcdefgh", 5) == "abcd…"
    assert clip(" " * 100 + "a", 5) == "…"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (0.97531, "0.975"), (-0.5, "−0.500"), (12345.6, "1.23e+04"), (1.5e-7, "1.5e−07")],
)
def test_numbers_keep_their_leading_digits(value: float, shown: str) -> None:
    assert format_number(value) == shown


def test_a_count_has_its_noun_in_singular_or_plural() -> None:
    shown = (format_count(1, "query"), format_count(1200, "query"), format_count(2, "row"), format_count(2, "batch"))
    assert shown == ("1 query", "1,200 queries", "2 rows", "2 batches")


def test_clauses_are_words_where_a_script_has_no_spaces() -> None:
    pieces = [("損ですよ", 1), ("。料金", 2), ("は「三百」", 3), ("円です。 So-called it's.", 4)]
    assert list(words_in(pieces)) == [
        ("損ですよ", [1] * 4),
        ("料金は", [2, 2, 3]),
        ("三百", [3, 3]),
        ("円です", [4] * 3),
        ("So-called", [4] * 9),
        ("it's", [4] * 5),
    ]
