from rept.data.chat_template import Place, Rendered
from rept.data.token_offsets import Tokens

SPECIAL = {0, 1}


def whole(text: str, response: str) -> Rendered:
    start = text.index(response)
    return Rendered(text, Place(1, start, start + len(response), 0), ())


def test_pieces_cover_spaces_that_offsets_leave_out() -> None:
    text = "a  b \x00c"
    tokens = Tokens([5, 6, 7], [(0, 1), (3, 4), (6, 7)])
    assert [text[start:end] for start, end in tokens.pieces] == ["a", "  b", " \x00c"]


def test_a_character_of_several_tokens_belongs_to_each() -> None:
    tokens = Tokens([5, 6, 7, 8], [(0, 1), (1, 2), (1, 2), (2, 3)])
    assert tokens.overlapping(1, 2) == range(1, 3)
    assert tokens.pieces == [(0, 1), (1, 2), (2, 2), (2, 3)]


def test_a_token_across_the_border_belongs_to_the_response() -> None:
    assert Tokens([5, 6, 7], [(0, 2), (2, 5), (5, 6)]).response(whole("ab:\nxy", "xy"), SPECIAL) == range(1, 3)


def test_a_special_token_across_the_border_does_not() -> None:
    """Such as Phi-3's <|assistant|>, which includes the white space after it."""
    assert Tokens([5, 0, 7], [(0, 1), (1, 5), (5, 6)]).response(whole("a<|> x", " x"), SPECIAL) == range(2, 3)


def test_the_turn_ends_with_its_first_special_token() -> None:
    text = "u:xy \n<e>\n<e>"
    offsets = [(0, 2), (2, 4), (4, 6), (6, 9), (9, 10), (10, 13)]
    assert Tokens([5, 6, 7, 1, 7, 0], offsets).response(whole(text, "xy"), SPECIAL) == range(1, 4)


def test_an_end_token_may_include_the_space_before_it() -> None:
    text = "u:x <e><e>"
    assert Tokens([5, 6, 1, 1], [(0, 2), (2, 3), (3, 7), (7, 10)]).response(whole(text, "x "), SPECIAL) == range(1, 3)


def test_without_a_special_token_the_turn_ends_with_its_text() -> None:
    text = "u:xy END \n"
    tokens = Tokens([5, 6, 7, 8], [(0, 2), (2, 4), (4, 8), (8, 10)])
    assert tokens.response(whole(text, "xy"), SPECIAL) == range(1, 3)


def test_white_space_at_the_end_of_a_response_belongs_to_it() -> None:
    tokens = Tokens([5, 6, 7], [(0, 2), (2, 3), (5, 5)])  # the last token's range was trimmed to nothing
    assert tokens.response(whole("u:x  ", "x  "), SPECIAL) == range(1, 3)
