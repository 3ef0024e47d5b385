"""Chat templates: render messages to text, and know where in that text each message stands.

Holds PLAIN_TEMPLATE, Place, Rendered, ChatTemplate.

A message is located by rendering the same conversation once more with a mark in the place of each content. What stands
between the marks is the template's own text; the rest of the real rendering must then be the messages, as they are or
trimmed. So nothing is searched for, and a prompt that repeats its response or the template's markers changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from rept.errors import UsageError

# For tokenizers without a template. A turn is its role, a colon and a newline, then the content; turns are set apart by
# an empty line; the response ends with the tokenizer's EOS token, where it has one. BOS is added by the encoder.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}:\n{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token or '' }}{% endif %}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:\n' }}{% endif %}"
)

# Templates that write today's date would give another signature tomorrow. This shadows the function they ask; the date
# is the one that Llama 3 templates fall back on.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}"
    "{{ format | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July') | replace('%m', '07')"
    " | replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday') | replace('%a', 'Fri')"
    " | replace('%H', '00') | replace('%M', '00') | replace('%S', '00') }}"
    "{% endmacro %}\n"  # the newline goes with the tag, so the template still starts at the start of a line
)

_MARK = "\ue000{}\ue001"  # private-use characters: no template writes them, and none trims them
_MARKS = re.compile("\ue000([0-9]+)\ue001")

Message = Mapping[str, Any]


class Place(NamedTuple):
    """Where a message's content stands in the rendered text."""

    message: int
    start: int  # characters of the text
    end: int
    skipped: int  # leading characters of the content that the template left out: all where it rewrote the content


class Rendered(NamedTuple):
    """A conversation as the model reads it."""

    text: str
    response: Place
    prompt: tuple[Place, ...]  # of the messages before it; a message that the template rewrites has no place


class ChatTemplate:
    """A tokenizer's own chat template, or PLAIN_TEMPLATE where it has none.

    Raises:
        UsageError: the template does not render one user turn and its answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        try:
            own = tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN_TEMPLATE
            self._template = _FIXED_DATE + own if "strftime_now" in own else own
            self._pieces_of_roles = lru_cache(maxsize=256)(self._split_roles)
            probe = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        except Exception as error:  # a template is a program of the user's: it can raise anything
            raise UsageError(
                f"Expected a chat template that renders a user turn and its answer, but the tokenizer's fails: {error}"
            ) from None
        if probe is None:
            raise UsageError("Expected a chat template that writes the assistant's turn, but the tokenizer's does not.")

    def text(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The rendered conversation. Raises whatever the template raises."""
        return self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self._template,
            add_generation_prompt=generation_prompt,
            tokenize=False,
        )

    def render(self, messages: Sequence[Message]) -> Rendered | None:
        """Renders a conversation whose last message is the response, and locates the messages.

        Returns:
            None where the response cannot be told from the template's text. Raises whatever the template raises.
        """
        text = self.text(messages)
        contents = [message.get("content") or "" for message in messages]
        places = _align(text, self._pieces(messages), contents)
        last = len(messages) - 1
        if places and places[-1].message == last:
            return Rendered(text, places[-1], tuple(place for place in places if place.message != last))
        response = self._response(text, messages)
        return response and Rendered(text, response, _search(text[: response.start], contents[:-1]))

    def _pieces(self, messages: Sequence[Message]) -> list[str]:
        """The template's text, message number, the template's text, …, for messages of these roles."""
        if all(message.keys() == {"role", "content"} for message in messages):
            return self._pieces_of_roles(tuple(message["role"] for message in messages))
        return self._split([dict(message, content=_MARK.format(i)) for i, message in enumerate(messages)])

    def _split_roles(self, roles: tuple[str, ...]) -> list[str]:
        return self._split([{"role": role, "content": _MARK.format(i)} for i, role in enumerate(roles)])

    def _split(self, marked: Sequence[Message]) -> list[str]:
        try:
            return _MARKS.split(self.text(marked))
        except Exception:  # it accepts the messages but not the marks, for it reads the contents
            return []

    def _response(self, text: str, messages: Sequence[Message]) -> Place | None:
        """The response's place in a rendering that depends on the contents, as with tool results and reasoning blocks.

        What follows the response is known from a rendering with a mark in its stead. What comes before it is what comes
        before the mark, or else (a response that brings its own reasoning block) the generation prompt.
        """
        last, response = len(messages) - 1, messages[-1]["content"]
        mark = _MARK.format(last)
        before, found, after = self.text([*messages[:-1], dict(messages[-1], content=mark)]).rpartition(mark)
        if not found or not text.endswith(after):
            return None
        end = len(text) - len(after)
        head = before if text.startswith(before) else self.text(messages[:-1], generation_prompt=True)
        written = text[len(head) : end]
        if not text.startswith(head) or not written.strip():
            return None
        kept = response.find(written.strip())
        skipped = kept - (len(written) - len(written.lstrip())) if kept >= 0 else len(response)
        return Place(last, len(head), end, skipped)


def _align(text: str, pieces: Sequence[str], contents: Sequence[str]) -> list[Place] | None:
    """The places of the contents between the template's own pieces, or None where the text is not of that form."""
    if not pieces or not text.startswith(pieces[0]):
        return None
    places, at = [], len(pieces[0])
    for number, following in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
        content = contents[number]
        for form in (content, content.rstrip(), content.lstrip(), content.strip()):
            end = at + len(form)
            if text.startswith(form, at) and text.startswith(following, end):
                skipped = 0 if content.startswith(form) else len(content) - len(content.lstrip())
                places.append(Place(number, at, end, skipped))
                at = end + len(following)
                break
        else:
            return None
    return places if at == len(text) else None


def _search(text: str, contents: Sequence[str]) -> tuple[Place, ...]:
    """Places of the contents found one after the other; what the template rewrote is not found."""
    places, at = [], 0
    for number, content in enumerate(contents):
        start = text.find(content.strip(), at) if content.strip() else -1
        if start >= 0:
            at = start + len(content.strip())
            places.append(Place(number, start, at, len(content) - len(content.lstrip())))
    return tuple(places)
