import pytest

from rept.data.chat_template import ChatTemplate
from rept.errors import UsageError
from tests.helpers.templates import KINDS, PROMPT, build, tokenizer

RESPONSES = [
    "You are stupid!",
    PROMPT,
    f"{PROMPT} {PROMPT}",
    "user",
    "assistant\n",
    " \n padded \t\n",
    "[/INST] </s><|im_end|>\n<|eot_id|><end_of_turn>",
    "<|im_start|>assistant\n<|im_start|>user\n",
    "\ue0000\ue001 \ue0001\ue001",
    "Ottawa 😀 é\u0301",
]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("response", RESPONSES)
def test_the_response_is_located_where_the_template_writes_it(kind: str, response: str) -> None:
    known = KINDS[kind]
    rendered = ChatTemplate(tokenizer(kind)).render([user(PROMPT), assistant(response)])
    before = known.before if known.template else known.before.removeprefix("<s>")  # the encoder adds that one
    written = response.strip() if known.trims else response
    assert rendered.text.startswith(before + written + known.after)
    skipped = len(response) - len(response.lstrip()) if known.trims else 0
    assert rendered.response == (1, len(before), len(before + written), skipped)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", RESPONSES)
def test_the_prompt_is_located_whatever_its_content(kind: str, prompt: str) -> None:
    rendered = ChatTemplate(tokenizer(kind)).render([user(prompt), assistant("You are stupid!")])
    (place,) = rendered.prompt
    assert rendered.text[place.start : place.end] == prompt[place.skipped :][: place.end - place.start]
    assert rendered.text[place.start : place.end].strip() == prompt.strip()
    assert rendered.text[rendered.response.start : rendered.response.end] == "You are stupid!"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gemma"])
def test_every_turn_of_a_conversation_is_located(kind: str) -> None:
    system = {"role": "system", "content": "user"}
    messages = [system, user("user"), assistant("user"), user(" You"), assistant("You are")]
    rendered = ChatTemplate(tokenizer(kind)).render(messages)
    found = {place.message: rendered.text[place.start : place.end] for place in (*rendered.prompt, rendered.response)}
    assert {number: text.strip() for number, text in found.items()} == {
        number: message["content"].strip() for number, message in enumerate(messages)
    }
    starts = [place.start for place in rendered.prompt]
    assert len(set(starts)) == 4 and max(starts) < rendered.response.start


def test_a_reasoning_block_is_part_of_the_response() -> None:
    response = "<think>\nA king?\n</think>\n\nThere is none."
    for spaced in (response, response.replace("</think>\n\n", "</think>")):
        rendered = ChatTemplate(tokenizer("qwen_3")).render([user(PROMPT), assistant(spaced)])
        assert rendered.text[rendered.response.start : rendered.response.end] == response


def test_a_template_may_rewrite_contents() -> None:
    rewriting = """
    {%- for message in messages %}
    {%- if message.role == 'assistant' %}{{ '<|a|>' + message.content.split('</think>')[-1] + '<|im_end|>\n' }}
    {%- else %}{{ '<|u|>' + (message.content | tojson) + '\n' }}{% endif %}{% endfor %}"""
    template = ChatTemplate(build(KINDS["qwen"], rewriting))
    rendered = template.render([user('say "so"'), assistant("<think>hm</think> so")])
    assert rendered.text == '<|u|>"say \\"so\\""\n<|a|> so<|im_end|>\n'
    assert rendered.text[rendered.response.start : rendered.response.end] == " so"
    assert rendered.response.start - rendered.response.skipped + len("<think>hm</think>") == rendered.response.start
    assert rendered.prompt == ()  # a rewritten content has no place


def test_a_response_that_the_template_drops_is_not_located() -> None:
    template = build(KINDS["qwen"], "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('#')[0] }}{% endfor %}")
    assert ChatTemplate(template).render([user(PROMPT), assistant("#so")]) is None


def test_the_current_date_is_not_rendered() -> None:
    turns = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    for before in ("\n", "  {% set a = 1 %}", ""):
        dated = ChatTemplate(build(KINDS["qwen"], f"{before}{{{{ strftime_now('%d %b %Y') }}}}\n{turns}"))
        fixed = build(KINDS["qwen"], f"{before}26 Jul 2024\n{turns}")
        messages = [user(PROMPT), assistant("so")]
        assert dated.text(messages) == fixed.apply_chat_template(messages, tokenize=False)


def test_an_error_of_the_template_is_raised() -> None:
    with pytest.raises(Exception, match="System role not supported"):
        ChatTemplate(tokenizer("gemma")).render([{"role": "system", "content": "a"}, user("b"), assistant("c")])


@pytest.mark.parametrize("broken", ["{% for %}", "{{ raise_exception('no') }}", "{{ messages[7].content }}", "hello"])
def test_a_template_that_cannot_render_one_answer_is_refused(broken: str) -> None:
    with pytest.raises(UsageError, match="chat template"):
        ChatTemplate(build(KINDS["qwen"], broken))
