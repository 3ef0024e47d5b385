"""Renders chat messages to text and locates each message in it.

To locate the messages, the same conversation is rendered again with a mark in place of each content. The text between
the marks is the template's own; the rest of the first rendering must then be the messages, as they are or trimmed.
Nothing is searched for, so a prompt that repeats its response or the template's own markers is located correctly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, cast

from rept.data.samples import Message, content_of
from rept.errors import UsageError
from rept.types import PreTrainedTokenizerBase

# For tokenizers without a template. A turn is its role, a colon, a newline and the content; an empty line separates
# turns; the response ends with the tokenizer's EOS token, if it has one. The encoder adds BOS.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}:\n{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token or '' }}{% endif %}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:\n' }}{% endif %}"
)

# A template that writes the current date would give another signature every day. This macro shadows the function that
# such templates call; the date is the one that Llama 3 templates fall back to.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}"
    "{{ format | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July') | replace('%m', '07')"
    " | replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday') | replace('%a', 'Fri')"
    " | replace('%H', '00') | replace('%M', '00') | replace('%S', '00') }}"
    "{% endmacro %}\n"  # the newline is removed with the tag, so the template still starts at the start of a line
)

_MARK = "\ue000{}\ue001"  # private-use characters, which no template writes or trims
_MARKS = re.compile("\ue000([0-9]+)\ue001")


class Place(NamedTuple):
    """The position of a message's content in the rendered text."""

    message: int
    start: int  # in characters of the text
    end: int
    skipped: int  # leading characters of the content that the template left out: all, if it rewrote the content


class Rendered(NamedTuple):
    """A conversation as the model reads it."""

    text: str
    response: Place
    prompt: tuple[Place, ...]  # of the messages before the response, without those that the template rewrites


class ChatTemplate:
    """A tokenizer's own chat template, or PLAIN_TEMPLATE if it has none.

    Raises UsageError if it does not render one user turn and its answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        try:
            own = tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN_TEMPLATE
            self._template = _FIXED_DATE + own if "strftime_now" in own else own
            self._pieces_by_roles = lru_cache(maxsize=256)(lambda roles: self._split([{"role": one} for one in roles]))
            probe = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        except Exception as error:  # templates are user code and can raise anything
            raise UsageError(
                f"Expected a chat template that renders a user turn and its answer, but it fails: {error}"
            ) from None
        if probe is None:
            raise UsageError("Expected a chat template that writes the assistant's turn, but it does not.")

    def text(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """Returns the rendered conversation. Raises whatever the template raises."""
        text = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self._template,
            add_generation_prompt=generation_prompt,
            tokenize=False,
        )
        return cast(str, text)  # as always with tokenize=False

    def render(self, messages: Sequence[Message], earlier: Sequence[int] = ()) -> Rendered | None:
        """Renders a conversation whose last message is the response, and locates its messages.

        Args:
            earlier: numbers of other messages that must be located too, even if the template rewrites them.

        Returns:
            None if one of these cannot be located. Raises whatever the template raises.
        """
        text = self.text(messages)
        contents = [content_of(message) for message in messages]
        places = _align(text, self._pieces(messages), contents)
        last = len(messages) - 1
        if places and {*earlier, last} <= {place.message for place in places}:
            *_, response = (place for place in places if place.message == last)
            return Rendered(text, response, tuple(place for place in places if place.message != last))
        found = self._locate(text, messages, last)
        if found is None:
            return None
        prompt = {place.message: place for place in _search(text[: found.start], contents[:-1])}
        for number in earlier:
            place = self._locate(text, messages, number)
            if place is None:
                return None
            prompt[number] = place
        return Rendered(text, found, tuple(sorted(prompt.values())))

    def _pieces(self, messages: Sequence[Message]) -> list[str]:
        """Returns the template's text, message number, the template's text, …, for messages of these roles."""
        if all(message.keys() == {"role", "content"} for message in messages):
            return self._pieces_by_roles(tuple(message["role"] for message in messages))
        return self._split(messages)

    def _split(self, messages: Sequence[Message]) -> list[str]:
        marked = [dict(message, content=_MARK.format(i)) for i, message in enumerate(messages)]
        try:
            return _MARKS.split(self.text(marked))
        except Exception:  # a template that reads the contents may refuse the marks
            return []

    def _locate(self, text: str, messages: Sequence[Message], number: int) -> Place | None:
        """Locates an answer in a rendering that depends on the contents, as with tool results and reasoning blocks.

        The text after the answer is that after a mark in its place. The text before it is that before the mark or, for
        an answer that contains its own reasoning block, the generation prompt.
        """
        answer, mark = messages[number]["content"], _MARK.format(number)
        marked = [*messages[:number], dict(messages[number], content=mark), *messages[number + 1 :]]
        before, found, after = self.text(marked).rpartition(mark)
        if not found or not text.endswith(after):
            return None
        end = len(text) - len(after)
        head = before if text.startswith(before) else self.text(messages[:number], generation_prompt=True)
        written = text[len(head) : end]
        if not text.startswith(head) or not written.strip():
            return None
        kept = answer.find(written.strip())
        skipped = kept - (len(written) - len(written.lstrip())) if kept >= 0 else len(answer)
        return Place(number, len(head), end, skipped)


def _align(text: str, pieces: Sequence[str], contents: Sequence[str]) -> list[Place] | None:
    """Returns the places of the contents between the template's pieces, or None if the text does not alternate so."""
    if not pieces or not text.startswith(pieces[0]):
        return None
    places, position = [], len(pieces[0])
    for number, following in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
        content = contents[number]
        for form in (content, content.rstrip(), content.lstrip(), content.strip()):
            end = position + len(form)
            if text.startswith(form, position) and text.startswith(following, end):
                skipped = 0 if content.startswith(form) else len(content) - len(content.lstrip())
                places.append(Place(number, position, end, skipped))
                position = end + len(following)
                break
        else:
            return None
    return places if position == len(text) else None


def _search(text: str, contents: Sequence[str]) -> tuple[Place, ...]:
    """Finds the contents one after the other, leaving out those that the template rewrote."""
    places, position = [], 0
    for number, content in enumerate(contents):
        start = text.find(content.strip(), position) if content.strip() else -1
        if start >= 0:
            position = start + len(content.strip())
            places.append(Place(number, start, position, len(content) - len(content.lstrip())))
    return tuple(places)
