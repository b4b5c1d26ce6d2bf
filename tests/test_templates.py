"""Chat templates of every kind: handled, or refused in one line when the tokenizer is loaded."""

import datetime
import json
from pathlib import Path

import pytest
import tiny as tiny_

from maft.errors import DataError
from maft.models.templates import Template
from maft.records import AgentRef, Message, Request, SamplingParams
from maft.samplers.chat import Chat
from maft.trainers.dialogue_tokens import IGNORED, tokenize

pytestmark = pytest.mark.torch

CHATML = tiny_.CHATML
BODY = "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
LOOP, CONTENT = "{% for message in messages %}", "{{ message.content }}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + BODY + ASK
SYSTEM_DROPPED = BODY.replace(LOOP, "{% for message in messages if message.role != 'system' %}") + ASK
THINK = "{% if message.role == 'assistant' and loop.last and '</think>' not in message.content %}<think>\n\n</think>\n\n{% endif %}"
EMPTY_THINKING = BODY.replace(CONTENT, THINK + CONTENT) + ASK
OPENS_THINKING = (
    BODY.replace(CONTENT, "{{ message.content.split('</think>')[-1] }}") + ASK.replace("|>\n", "|>\n<think>\n")
)  # fmt: skip
PARTS = (
    BODY.replace(CONTENT, "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}") + ASK
)
DATE = "<|system|>\nToday is {{ strftime_now('%d %B %Y') }}.<|end|>\n" + BODY + ASK
STRICT = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% endfor %}" + BODY + ASK
)
NO_END = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
TRIMMED = BODY.replace("message.content", "message.content | trim") + ASK

DIALOGUE = tiny_.CRITIC
SYSTEM = Message(role="system", content="Be brief.")


def tokenizer(template, eos: str | None = "<|end|>"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([*tiny_.SPECIAL, "<|endoftext|>", "[THINK]", "[/THINK]"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, chat_template=template)


def template(text, eos: str | None = "<|end|>", **how) -> Template:
    with_template = tokenizer(text, eos)
    return Template(with_template, "org/model", [] if eos is None else [with_template.eos_token_id], **how)


def trained(of: Template, messages=DIALOGUE, loss_turns="last", sampled=None) -> tuple[str, str]:
    """Return all tokens, and those that carry loss, as text."""
    tokens = tokenize(of, messages, loss_turns, sampled)
    learned = [token for token, label in zip(tokens.input_ids, tokens.labels, strict=True) if label != IGNORED]
    return of.tokenizer.decode(tokens.input_ids), of.tokenizer.decode(learned)


GOOD = {
    "chatml": CHATML,
    "no system role": NO_SYSTEM,
    "system dropped": SYSTEM_DROPPED,
    "empty thinking": EMPTY_THINKING,
    "opens thinking": OPENS_THINKING,
    "parts": PARTS,
    "date": DATE,
    "strict": STRICT,
    "trimmed": TRIMMED,
}


@pytest.mark.parametrize("name", GOOD)
def test_the_prompt_of_training_is_that_of_sampling_and_the_loss_is_on_what_was_sampled(name):
    of = template(GOOD[name])
    text, learned = trained(of)
    prompt = of.prompt(DIALOGUE[:-1])
    assert text == prompt + learned and all(message.content in prompt for message in DIALOGUE[:-1])
    assert learned == DIALOGUE[-1].content + "<|end|>\n"
    assert of.tokenizer.convert_ids_to_tokens(of.stop_id) == "<|end|>" and of.stop_id in of.stop_ids


@pytest.mark.parametrize(
    ("name", "moved"), [("no system role", 1), ("system dropped", 1), ("strict", 1), ("chatml", 0)]
)
def test_a_system_text_that_a_template_has_no_role_for_is_put_before_the_first_question(name, moved, caplog):
    of = template(GOOD[name])
    texts = [of.prompt([SYSTEM, *DIALOGUE[:-1]]) for _ in range(2)]
    assert ("Be brief.\n\n" + DIALOGUE[0].content in texts[0]) == bool(moved) and "Be brief." in texts[1]
    assert sum("has no system role" in line for line in caplog.messages) == moved


def test_thinking_that_the_prompt_opens_is_trained_as_it_was_sampled_and_earlier_thinking_is_left_out():
    of = template(OPENS_THINKING)
    first, second = "So 8.\n</think>\n\n\\boxed{8}", "No, 7.\n</think>\n\n\\boxed{7}"
    messages = tiny_.dialogue("What is 3 + 4?", first, "Check.", second)
    text, learned = trained(of, messages)
    assert learned == second + "<|end|>\n"
    prompt = text.removesuffix(learned)
    assert prompt.endswith("<|assistant|>\n<think>\n") and "So 8." not in prompt and "\\boxed{8}" in prompt
    with pytest.raises(DataError, match=r"train\.loss_turns=last"):
        trained(of, messages, "all")


def test_the_end_of_a_turn_stops_sampling_though_it_is_not_the_eos():
    of = template(CHATML, eos="<|endoftext|>")
    ends = of.tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    assert of.stop_ids == set(ends) and of.stop_id == ends[0] and of.end == "<|end|>\n"


def test_a_template_that_writes_no_end_is_trained_with_the_eos():
    of = template(NO_END)
    assert of.end == "<|end|>" and trained(of)[1] == DIALOGUE[-1].content + "<|end|>"


@pytest.mark.parametrize(
    ("text", "eos", "message"),
    [
        (None, "<|end|>", "has no chat template"),
        ("{% for %}", "<|end|>", "fails on a dialogue of user: TemplateSyntaxError"),
        ("{{ messages[0].nothing.more }}", "<|end|>", "fails on a dialogue of user: UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "<|end|>", "fails on a dialogue of user: SecurityError"),
        ({"rag": CHATML, "tool": CHATML}, "<|end|>", "has the chat templates rag, tool, and none called default"),
        (NO_END, None, "has no token that ends a reply"),
        (CHATML.replace("message['content']", "message['content'][:4]"), "<|end|>", "does not keep 'Is Q1"),
        (CHATML.replace("message['content']", "message['content'] | escape"), "<|end|>", "does not keep 'Is Q1"),
        ("{{ messages[-1].content }}<|end|>", "<|end|>", "does not keep 'Is Q1"),
        ("{% if messages[2] %}{{ raise_exception('one turn') }}{% endif %}" + CHATML, "<|end|>", "assistant, user: "),
    ],
)
def test_a_template_that_does_not_serve_is_refused_in_one_line(text, eos, message):
    with pytest.raises(DataError, match=message) as error:
        template(text, eos)
    assert "\n" not in str(error.value)


def test_the_default_of_several_templates_is_used():
    assert template({"default": CHATML, "rag": "{{ 1 }}"}).prompt(DIALOGUE[:1]) == template(CHATML).prompt(DIALOGUE[:1])


def test_a_date_in_the_template_is_said_and_can_be_fixed(caplog):
    assert f"Today is {datetime.date.today():%d %B %Y}" in template(DATE).prompt(DIALOGUE[:1])
    assert f"engine.date={datetime.date.today().isoformat()}" in caplog.text
    caplog.clear()
    fixed = template(DATE, today=datetime.date(2026, 1, 31))
    assert "Today is 31 January 2026." in fixed.prompt(DIALOGUE[:1]) and not caplog.messages
    template(CHATML)
    assert not caplog.messages


def test_marks_of_thinking_that_are_special_tokens_stay_in_the_text():
    of = template(CHATML)
    reply = "[THINK]Is it 5?[/THINK]\\boxed{7}"
    ids = of.tokenize(reply + "<|end|>")
    assert of.decode(ids) == reply
    assert trained(of, tiny_.dialogue("Q", reply), sampled=[ids])[1] == reply + "<|end|>\n"


def test_all_turns_carry_loss_where_the_last_ends_differently():
    closing = BODY + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}" + ASK
    learned = trained(template(closing), loss_turns="all")[1]
    assert learned == "\\boxed{8}<|end|>\nIt is \\boxed{7}.<|end|>\n<|endoftext|>"


def test_a_chat_reads_its_template_from_the_model_folder(tiny, tmp_path):
    for file in Path(tiny).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name, changes in {
        "config.json": {"eos_token_id": None},
        "generation_config.json": {"eos_token_id": None},
        "tokenizer_config.json": {"eos_token": None},
    }.items():
        (tmp_path / name).write_text(json.dumps(json.loads((tmp_path / name).read_text()) | changes))
    (tmp_path / "chat_template.jinja").write_text(DATE)
    chat = Chat(str(tmp_path), today=datetime.date(2026, 1, 31))
    agent = AgentRef(role="generator", index=0, model="m")
    asked = Request(agent=agent, messages=DIALOGUE[:1], sampling=SamplingParams(max_new_tokens=5), seed=0)
    assert "31 January 2026" in chat.tokenizer.decode(chat.encode(asked).token_ids)
    assert chat.tokenizer.convert_ids_to_tokens(sorted(chat.stop_ids)) == ["<|end|>"]
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(DataError, match="TemplateSyntaxError"):
        Chat(str(tmp_path))


@pytest.mark.parametrize(
    "arguments", [("run", "--dry-run"), ("plan",), ("run",), ("debate",), ("compare", "--methods", "maft")]
)
def test_a_template_that_does_not_serve_is_said_before_anything_runs(arguments, home, call, tiny):
    model = home / "model"
    model.mkdir()
    for file in Path(tiny).iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    verb, *more = arguments
    settings = ["model=./model", "engine.sampler=transformers", "engine.trainer=sft", "name=templates"]
    (model / "chat_template.jinja").write_text("{% for %}")
    code, _, said = call(verb, "sums.yaml", *settings, *more)
    assert code == 2 and "TemplateSyntaxError" in said and len(said.strip().splitlines()) <= 2
    (model / "chat_template.jinja").write_text(OPENS_THINKING)
    code, _, said = call(verb, "sums.yaml", *settings, "train.loss_turns=all", *more)
    assert code == 2 and "train.loss_turns=last" in said
    assert not list(home.rglob("debates.jsonl"))
