"""The server's page in a real browser: a debate as it goes, follow-ups, a key, hostile text, phone and dark."""

import chromium
import pytest
from served import served

from maft import seeds
from maft.records import Request
from maft.samplers import Scripted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium on this machine"),
]

HOSTILE = "</p><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> &lt;"
DONE = "document.getElementById('state').textContent.includes('calls')"


def say(request: Request) -> str:
    number = seeds.rng("guess", request.seed).choice([0, 0, 1, 2])
    heard = sum(message.role == "user" for message in request.messages)
    return f"{HOSTILE} after {heard} questions \\boxed{{{number}}}"


@pytest.fixture(scope="module")
def server(finished_run):
    with served(finished_run, Scripted(say)) as opened:
        yield opened


@pytest.fixture(scope="module")
def page():
    with chromium.page() as opened:
        yield opened


def ask(page, question: str) -> None:
    page.run("document.getElementById('question').focus()")
    page.type(question)
    page.press("Enter")
    page.wait(f"document.querySelector('#talk .question:last-of-type') && {DONE}")


def test_a_debate_is_shown_with_its_rounds_and_its_vote(page, server, tmp_path):
    page.complaints.clear()
    page.requests.clear()
    page.open(server.url + "/")
    page.wait("document.querySelectorAll('#model option').length === 9")
    ask(page, "What is 2 + 3?")
    rounds = page.run("[...document.querySelectorAll('.round h2')].map(one => one.textContent)")
    summaries = "Round 2: summaries of the others' answers"
    assert rounds == ["Round 1: first answers", summaries, "Round 2: answers after reading"]
    assert page.run("document.querySelectorAll('.round:first-of-type .card').length") == 3
    assert page.run("document.querySelector('.vote').innerText.startsWith('Vote: ')")
    assert page.run("document.querySelectorAll('.card.is-winner').length") > 0
    votes = page.run("[...document.querySelectorAll('.vote meter')].map(one => one.value).reduce((a, b) => a + b)")
    assert votes == 3
    assert page.run("document.title") == "maft: ask the society"
    assert page.run("document.querySelectorAll('#talk img, #talk script').length") == 0
    assert "<script>document.title" in page.run("document.querySelector('.said').textContent")
    assert page.complaints == [] and all(url.startswith((server.url, "about:")) for url in page.requests)
    page.screenshot(tmp_path / "debate.png")


def test_a_follow_up_continues_and_a_new_talk_begins_anew(page, server):
    page.open(server.url + "/")
    page.wait("document.querySelectorAll('#model option').length === 9")
    page.run("document.getElementById('model').value = 'critic_1'")
    ask(page, "What is 2 + 3?")
    page.run("document.getElementById('state').textContent = ''")
    ask(page, "And 4 more?")
    said = page.run("[...document.querySelectorAll('.said')].map(one => one.textContent)")
    assert "after 1 questions" in said[0] and "after 2 questions" in said[1] and len(said) == 2
    page.click("#fresh")
    assert page.run("document.getElementById('talk').children.length") == 0
    ask(page, "Again?")
    assert "after 1 questions" in page.run("document.querySelector('.said').textContent")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_a_phone_in_the_light_and_in_the_dark(page, server, dark):
    page.open(server.url + "/", width=360, dark=dark)
    page.wait("document.querySelectorAll('#model option').length === 9")
    ask(page, "x" * 300)
    assert page.run("document.documentElement.scrollWidth") <= 360
    colours = page.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    ink, paper = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
    assert (ink > 600 and paper < 100) if dark else (ink < 150 and paper > 700)


def test_a_key_is_asked_for(page, finished_run):
    with served(finished_run, Scripted(say), key="s3cret") as server:
        page.open(server.url + "/")
        page.wait("!document.getElementById('locked').hidden")
        page.run("document.getElementById('key').focus()")
        page.type("s3cret")
        page.run("document.getElementById('key').dispatchEvent(new Event('change'))")
        page.wait("document.querySelectorAll('#model option').length === 9")
        ask(page, "What is 2 + 3?")
        assert page.run("!!document.querySelector('.vote')")


def test_an_error_is_shown_in_words(page, server):
    page.open(server.url + "/")
    page.wait("document.querySelectorAll('#model option').length === 9")
    page.run(
        "document.getElementById('model').append(new Option('nobody')); document.getElementById('model').value = 'nobody'"
    )
    page.run("document.getElementById('question').value = 'Hello?'; document.getElementById('form').requestSubmit()")
    page.wait("document.querySelector('.error')")
    assert "there is no model 'nobody'" in page.run("document.querySelector('.error').textContent")
