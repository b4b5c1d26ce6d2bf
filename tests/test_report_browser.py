"""The pages in a real browser: what a click, a key and a search do, on a screen and on a phone, in the light and dark."""

import time
from collections import Counter
from pathlib import Path

import chromium
import pytest
from helpers import Quiet, boxed, run, settings
from test_comparison import sums

from maft import comparison, report, seeds
from maft.records import Request
from maft.report import data, debates
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.trainers import NullTrainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium on this machine"),
]

HOSTILE = (
    "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> <!-- & \x1b[J"
)
LIST = "!!document.querySelector('.list > li')"
ROWS = "document.querySelectorAll('.list > li').length"
WORDS = "so then we add both numbers and carry one since their sum exceeds ten which gives the total of first second"


def hostile_guess(request: Request) -> str:
    number = seeds.rng("guess", request.seed).choice([0, 0, 1, 2, None])
    return HOSTILE if number is None else f"{HOSTILE} {boxed(number)}"


def lengthy(request: Request) -> str:
    draw = seeds.rng("lengthy", request.seed)
    number = draw.choice([0, 0, 0, 1, 2, None])
    said = " ".join(draw.choices(WORDS.split(), k=draw.randint(60, 180)))
    return said if number is None else f"{said} {boxed(number)}"


@pytest.fixture(scope="module")
def page():
    with chromium.page() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    overrides = ("num_iterations=2", "task.num_train=30", "task.num_eval=70", "task.high=9", "debate.summarizer=base")
    return run(settings(tmp_path_factory.mktemp("runs"), *overrides), Scripted(hostile_guess))


@pytest.fixture(scope="module")
def file(folder) -> Path:
    return report.write_page(folder)


def of_kind(folder: RunFolder, iteration: int) -> Counter[str]:
    """Return how many held-out debates of an iteration are of each kind."""
    key = f"eval-{iteration}"
    (found,) = [one for one in debates._held_out(folder, data.evaluations(folder)) if one.key == key]
    return Counter(
        kind
        for shown in found.debates
        for kind in debates.kinds(shown, found.problems[shown.debate.problem_id], found.grade)
    )


def test_a_click_filters_and_a_click_opens(page, file, folder):
    page.open(file)
    page.wait(LIST)
    counted = of_kind(folder, 2)
    assert counted["spoiled"] and counted["corrected"], "the test shows nothing without them"
    for kind in ("corrected", "spoiled", "split", "unparsable"):
        page.click(f"[data-kind='{kind}']")
        assert page.run(ROWS) == min(50, counted[kind])
        assert page.run("document.querySelector('[role=status]').textContent") == f"{counted[kind]} of 70 debates"
        tags = page.run("[...document.querySelectorAll('.tags')].map(tag => tag.textContent)")
        assert all(kind in tag.split(" · ") for tag in tags)
        page.click(f"[data-kind='{kind}']")
    page.click("[data-kind='spoiled']")
    page.click(".list > li:nth-child(2) > button")
    said = page.run("document.querySelector('.list > li:nth-child(2) .transcript').innerText")
    assert "Round 1: each generator answers alone" in said and "Round 2: each critic has read a summary" in said
    assert said.count("generator") >= 3 and "Vote: " in said and "✗ wrong" in said
    assert HOSTILE[:40] in said and "\\x1b[J" in said
    page.click(".list > li:nth-child(2) > button")
    assert page.run("document.querySelector('.transcript')") is None


def test_text_of_a_model_never_becomes_a_part_of_the_page(page, file):
    page.complaints.clear()
    page.requests.clear()
    page.open(file, "#debates?open=nothing")
    page.wait(LIST)
    for row in range(1, 6):
        page.click(f".list > li:nth-child({row}) > button")
    assert page.run("document.querySelectorAll('.transcript').length") == 5
    assert page.run("document.title") == "run · maft report"
    assert page.run("document.querySelectorAll('img, .said script, .said b').length") == 0
    assert page.run("document.scripts.length") == 2
    assert page.complaints == []
    assert set(page.requests) <= {"about:blank", file.as_uri()}


def test_a_script_that_got_in_all_the_same_would_not_run(page, file, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(file.read_text().replace("</h1>", "</h1><script>document.title = 'owned'</script>", 1))
    page.open(bad)
    page.wait(LIST)
    assert page.run("document.title") == "run · maft report"
    page.complaints.clear()


def test_a_search_finds_text_and_marks_it(page, file):
    page.open(file)
    page.wait(LIST)
    page.press("/")
    page.type("WHAT IS 3 + ")
    page.wait(f"{ROWS} < 20")
    questions = page.run("[...document.querySelectorAll('.question')].map(one => one.textContent)")
    assert questions and all("What is 3 + " in question for question in questions)
    assert "search=WHAT" in page.run("location.hash")
    page.run("document.querySelector('input[type=search]').select()")
    page.type("no such words")
    page.wait(f"{ROWS} === 0")
    page.run("document.querySelector('input[type=search]').select()")
    page.type("document.title")
    page.wait(f"{ROWS} === 50")
    page.click(".list > li > button")
    assert page.run("document.querySelector('mark').textContent") == "document.title"


def test_the_address_holds_what_is_shown(page, file, folder):
    page.open(file, "#debates?set=eval-0&kind=spoiled&kind=split")
    page.wait(LIST)
    assert page.run("document.querySelector('.tools select').value") == "eval-0"
    assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 2
    page.click(".list > li > button")
    name = page.run("document.querySelector('.list > li').dataset.id")
    address = page.run("location.hash")
    page.open(file, address)
    page.wait("!!document.querySelector('.transcript')")
    assert page.run("document.querySelector('.is-open').dataset.id") == name
    page.click(".transcript .chips button")
    assert page.run("document.querySelector('.tools select').value") == "eval-2"
    assert page.run("document.querySelector('.is-open').dataset.id") == name, "the same question, of another iteration"


def test_training_debates_say_who_learns(page, file):
    page.open(file, "#debates?set=train-1")
    page.wait(LIST)
    page.run("document.querySelectorAll('.list > li > button').forEach(button => button.click())")
    assert page.run("document.querySelectorAll('.is-kept').length") > 0
    assert "Learns from it: its first answer is the label." in page.run("document.querySelector('.list').innerText")
    page.click("[data-kind='not used']")
    page.click(".list > li:not(.is-open) > button")
    assert "Nobody learns from this debate" in page.run("document.querySelector('.list').innerText")


def test_everything_can_be_done_with_keys(page, file):
    page.open(file)
    page.wait(LIST)
    page.run("document.querySelector('.list > li > button').focus()")
    page.press("ArrowDown")
    page.press("Enter")
    page.wait("!!document.querySelector('.list > li:nth-child(2) .transcript')")
    page.press("Escape")
    assert page.run("document.querySelector('.transcript')") is None
    page.press("ArrowUp")
    assert page.run("document.activeElement === document.querySelector('.list > li > button')")
    page.run("document.querySelector('.more-rows').focus()")
    page.press("Enter")
    assert page.run(ROWS) == 70 and page.run("document.querySelector('.more-rows').hidden")
    assert page.run("document.activeElement === document.querySelector('.list > li:nth-child(51) > button')")


def test_arrows_go_into_the_list_from_the_search_and_from_nowhere(page, file):
    page.open(file, "#debates")
    page.wait(LIST)
    first = "document.activeElement === document.querySelector('.list > li > button')"
    page.run("document.getElementById('debates').scrollIntoView(); document.activeElement.blur()")
    page.press("ArrowDown")
    assert page.run(first)
    page.run("document.querySelector('input[type=search]').focus()")
    page.press("ArrowDown")
    assert page.run(first)


def test_a_search_names_the_other_debates_that_have_it(page, file, folder):
    from maft import files
    from maft.records import Problem

    question = files.read_records(folder.problems("train"), Problem)[0].id
    page.open(file)
    page.wait(LIST)
    assert page.run("document.querySelector('.also').hidden")
    page.run(
        "(() => { const box = document.querySelector('input[type=search]'); "
        f"box.value = {question!r}; box.dispatchEvent(new Event('input')); }})()"
    )
    page.wait("!document.querySelector('.also').hidden")
    assert "Training" in page.run("document.querySelector('.also').innerText") or "training" in page.run(
        "document.querySelector('.also').innerText"
    )
    page.click(".also button")
    page.wait(LIST)
    assert page.run(ROWS) >= 1


def test_a_curve_is_shown_and_hidden_by_a_click(page, file):
    page.open(file)
    drawn = (
        "[...document.querySelectorAll('#chart-agents svg [data-curve=\"{}\"]')].map(e => getComputedStyle(e).display)"
    )
    assert set(page.run(drawn.format(0))) == {"inline"} and set(page.run(drawn.format(2))) == {"none"}
    page.click("#chart-agents label:nth-child(3)")
    assert set(page.run(drawn.format(2))) == {"inline"}
    page.click("#chart-agents label:nth-child(1)")
    assert set(page.run(drawn.format(0))) == {"none"}


@pytest.mark.parametrize("width", [360, 390, 700, 1400])
def test_no_width_makes_the_page_scroll_sideways(page, file, width):
    page.open(file, "#debates?kind=spoiled", width=width)
    page.wait(LIST)
    page.click(".list > li > button")
    assert page.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_the_page(page, file, dark, tmp_path):
    page.open(file, dark=dark)
    page.wait(LIST)
    ink, paper = page.run("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    shade = {name: sum(map(int, rgb[4:-1].split(","))) for name, rgb in (("ink", ink), ("paper", paper))}
    assert (shade["ink"] > 600 and shade["paper"] < 100) if dark else (shade["ink"] < 150 and shade["paper"] > 700)
    assert page.screenshot(tmp_path / "page.png").stat().st_size > 20_000, "a picture of nothing is smaller"


def test_the_table_of_methods_can_be_chosen_from_and_sorted(page, tmp_path):
    made = comparison.begin(settings(tmp_path, "num_iterations=2", "name=c"), ["single_agent_ft", "majority_ft"], [0])
    comparison.compare(made, Scripted(sums), NullTrainer(), Quiet())
    file = report.write_comparison_page(made, comparison.results(made))
    page.open(file, width=1300)
    shown = "[...document.querySelectorAll('tr[data-method]')].filter(r => r.offsetParent).map(r => r.dataset.method)"
    first = page.run(shown)
    assert {"base", "maft", "single_agent_ft", "majority_ft"} <= set(first) and len(set(first)) == len(first)
    assert "majority_ft_majority@3" not in first
    page.click("[data-tools] input")
    assert "majority_ft_majority@3" in page.run(shown)
    page.run(
        "{const s = document.querySelector('[data-tools] select'); s.value = 'all'; s.dispatchEvent(new Event('change', {bubbles: true}))}"
    )
    assert page.run(shown).count("maft") == 2
    page.click("#methods thead th:nth-child(2) button")
    values = page.run(
        "[...document.querySelectorAll('[data-iteration=\"2\"] tr[data-place]')].map(r => +r.cells[1].dataset.value)"
    )
    assert values == sorted(values, reverse=True)
    page.click("#chart-methods [data-show=none]")
    assert page.run("document.querySelectorAll('#chart-methods svg .curve:not([hidden])').length") == 0
    page.click("#chart-methods [data-show=all]")
    assert page.run("document.querySelectorAll('#chart-methods svg .curve[hidden]').length") == 0
    page.open(file, width=390)
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.complaints == []


def test_a_large_run_fits_into_one_page_that_answers_at_once(page, tmp_path):
    size = ("num_iterations=5", "task.num_train=100", "task.num_eval=500", "task.high=30", "engine.batch_size=64")
    folder = run(settings(tmp_path, *size, "debate.summarizer=base"), Scripted(lengthy))
    started = time.process_time()
    file = report.write_page(folder)
    assert time.process_time() - started < 60
    assert file.stat().st_size < 10_000_000
    page.open(file, "#debates?kind=split")
    page.wait(LIST, seconds=60)
    assert page.run(ROWS) == 50
    assert page.run("document.querySelectorAll('.tools option').length") >= 7, "all evaluations, and some training"
    # From the text to the list, in milliseconds of the browser.
    took = page.run(
        "(() => { const box = document.querySelector('input[type=search]'); const start = performance.now();"
        "box.value = 'carry one since'; box.dispatchEvent(new Event('input'));"
        "return new Promise(done => { const look = () => document.querySelector('[role=status]').textContent.includes(' of ')"
        " && location.hash.includes('carry') ? done(performance.now() - start) : setTimeout(look, 5); look(); }); })()"
    )
    assert took < 5_000
