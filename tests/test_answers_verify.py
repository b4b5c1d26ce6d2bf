"""Math-Verify in worker processes: what it decides, and that nothing said to it hangs, runs or stays."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, group, math500, settings

from maft.answers import canonical, compare, equivalent, verify, worker
from maft.answers.verify import Verifier
from maft.errors import DataError, MaftError
from maft.runs.folder import RunFolder
from maft.sandbox.process import Died, Killed, Process, UsedUp

EQUAL = [("x+1", "1+x"), (r"\sqrt{8}", r"2\sqrt{2}"), ("(x+1)^2", "x^2+2x+1"), ("6-5i", "-5i+6"), ("p-q", "-q+p")]
DIFFERENT = [("x+1", "x-1"), (r"\sqrt{8}", r"3\sqrt{2}"), ("(x+1)^2", "x^2+1"), ("6-5i", "6+5i"), ("p-q", "q-p")]
# Each of these passes every guard and takes Math-Verify longer than anyone waits.
ENDLESS = (r"\binom{9^{9}}{8^{9}}", r"\binom{9^{9}}{8^{9}}*1")
ALSO_ENDLESS = ("(x-1)(x^{998}+1)=0", "x^{999}-1=0")


@pytest.fixture
def verifier():
    made = Verifier(1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def ready():
    """A worker that has loaded Math-Verify; it remembers nothing."""
    made = verify.Worker().ready(60)
    yield made
    made.close()


@pytest.fixture
def fresh(ready):
    """A verifier that knows no verdict, with a worker that others have used."""
    made = Verifier(1)
    made.workers = [ready]
    return made


def keys(pairs):
    return [(canonical(a), canonical(b)) for a, b in pairs]


def python(script, *, cwd=None, timeout=60):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def gone(pid, seconds):
    """Wait until a process is no more, or only its name is."""
    for _ in range(int(seconds * 20)):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


def test_algebra_is_decided_in_both_directions(fresh):
    assert fresh.same(keys(EQUAL + DIFFERENT)) == [True] * 5 + [False] * 5
    assert fresh.same([(b, a) for a, b in keys(EQUAL + DIFFERENT)]) == [True] * 5 + [False] * 5


def test_arithmetic_and_words_start_no_process(monkeypatch):
    monkeypatch.setattr(verify, "Worker", lambda: pytest.fail("a process was started"))
    made = Verifier(2)
    pairs = [("56", "57"), ("1/2", "0.25"), ("1,234", "12.34"), ("(1,2)", "(1,3)"), ("yes", "no"), ("(B)", "C")]
    pairs += [
        ("x", "y"),
        ("5", "x"),
        (r"\{1,2\}", "1,3"),
        ("x=5", "6"),
        ("x+y=5", "5"),
        ("52_8", "52"),
        ("abcd", "dcba"),
    ]
    assert made.same(keys(pairs)) == [False] * len(pairs)
    assert made.same([("x+1", "x+1")]) == [True]


def test_a_pair_is_asked_once_in_either_order(fresh, monkeypatch):
    asked = []
    ask = Process.ask
    monkeypatch.setattr(
        Process, "ask", lambda self, pair, seconds: asked.append(tuple(pair[:2])) or ask(self, pair, seconds)
    )
    assert fresh.same([("x+1", "1+x"), ("1+x", "x+1"), ("x+1", "1+x")]) == [True, True, True]
    assert fresh.same([("1+x", "x+1")]) == [True]
    assert asked == [("1+x", "x+1")]


def test_no_more_is_remembered_than_the_limit(fresh, monkeypatch):
    monkeypatch.setattr(verify, "CACHED_PAIRS", 3)
    assert all(fresh.same([(f"x+{n}", f"{n}+x") for n in range(1, 8)]))
    assert len(fresh._known) == 3


@pytest.mark.slow
def test_a_pair_without_end_is_different_and_the_rest_is_answered(verifier, caplog, monkeypatch):
    monkeypatch.setattr(verify, "SECONDS", 0.5)
    monkeypatch.setattr(verify, "VOTE_SECONDS", 60.0)
    start = time.perf_counter()
    assert verifier.same([EQUAL[0], ENDLESS, EQUAL[1], ALSO_ENDLESS, *EQUAL[3:]]) == [
        True,
        False,
        True,
        False,
        True,
        True,
    ]
    assert time.perf_counter() - start < 60  # one second, if the machine has nothing else to do
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "more than 0.5 s" in caplog.text and "binom" in caplog.text
    # What was given up stays so, at once and without another word.
    start = time.perf_counter()
    assert verifier.same([ENDLESS, ENDLESS[::-1]]) == [False, False]
    assert time.perf_counter() - start < 0.1 and len(caplog.records) == 2


@pytest.mark.slow
def test_a_time_out_is_kept_though_the_cache_is_full(verifier, monkeypatch):
    monkeypatch.setattr(verify, "SECONDS", 0.5)
    monkeypatch.setattr(verify, "CACHED_PAIRS", 1)
    assert verifier.same([ENDLESS]) == [False]
    assert verifier.same(keys(EQUAL)) == [True] * 5
    monkeypatch.setattr(Process, "ask", lambda *_: pytest.fail("it was asked again"))
    assert verifier.same([ENDLESS]) == [False]


@pytest.mark.slow
@linux
def test_memory_is_limited_and_too_little_of_it_is_no_answer(verifier, caplog, monkeypatch):
    asked = verify.Worker().ready(60)
    limits = Path(f"/proc/{asked.process.pid}/limits").read_text()
    assert f"Max address space         {verify.MEMORY_BYTES}" in limits
    asked.close()
    monkeypatch.setattr(Process, "read", lambda self, seconds: "ready" if seconds == 60 else "memory")
    assert verifier.same([EQUAL[0]]) == [False]
    assert "after more than 1.5 GiB" in caplog.text


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(verifier):
    assert verifier.same([EQUAL[0]]) == [True]
    (dead,) = verifier.workers
    dead.process.kill()
    dead.process.wait()
    assert verifier.same([EQUAL[1]]) == [True]


@pytest.mark.slow
def test_a_worker_killed_from_outside_says_nothing_of_its_pair(verifier, monkeypatch):
    """Such as by the system's out-of-memory killer, in the midst of a pair."""
    started, ask = [], Process.ask

    def killed(self, pair, seconds):
        started.append(self)
        if len(started) < 3:
            self.process.kill()
            self.process.wait()
        return ask(self, pair, seconds)

    monkeypatch.setattr(Process, "ask", killed)
    assert verifier.same([EQUAL[0]]) == [True] and len(started) == 3


@pytest.mark.slow
def test_a_pair_whose_workers_always_die_is_different_in_this_vote_only(verifier, caplog, monkeypatch):
    def killed(self, pair, seconds):
        self.close()
        raise Died

    monkeypatch.setattr(Process, "ask", killed)
    assert verifier.same([EQUAL[0]]) == [False]
    assert "its worker ended 3 times" in caplog.text
    monkeypatch.undo()
    assert verifier.same([EQUAL[0]]) == [True]


@pytest.mark.slow
def test_a_vote_has_its_time_and_what_is_left_over_is_asked_by_the_next(verifier, caplog, monkeypatch):
    monkeypatch.setattr(verify, "SECONDS", 0.5)
    monkeypatch.setattr(verify, "VOTE_SECONDS", 0.7)
    monkeypatch.setattr(verify, "load", lambda: 1.0)
    assert verifier.same([EQUAL[1]]) == [True]  # the worker is there
    began = time.perf_counter()
    assert verifier.same([ENDLESS, ALSO_ENDLESS, EQUAL[0]]) == [False] * 3
    assert time.perf_counter() - began < 0.7 + 0.3
    assert "pairs of answers are taken for different in one vote, since the 0.7 s of this vote are over" in caplog.text
    assert verifier.same([EQUAL[0]]) == [True]


@pytest.mark.slow
def test_only_the_clock_is_a_verdict():
    for cpu, wall, how in ((0.3, 60, UsedUp), (60, 0.3, Killed)):
        process = Process("maft.answers.worker", str(2**31))
        assert process.read(60) == "ready"
        assert process.ask([*EQUAL[0], 5.0], 60) is True
        with pytest.raises(how):
            process.ask([*ENDLESS, cpu], wall)
        with pytest.raises(Died):
            process.ask([*EQUAL[0], 1.0], 1)


@pytest.mark.slow
def test_a_machine_that_stands_still_is_no_verdict(verifier, caplog, monkeypatch):
    ask = Process.ask

    def stopped(self, pair, seconds):
        self.process.send_signal(signal.SIGSTOP)
        return ask(self, pair, 0.2)

    monkeypatch.setattr(Process, "ask", stopped)
    assert verifier.same([EQUAL[0]]) == [False] and "s of this vote are over" in caplog.text
    monkeypatch.undo()
    assert verifier.same([EQUAL[0]]) == [True]


def test_verdicts_are_kept_with_the_run(fresh, tmp_path, monkeypatch):
    file = tmp_path / "verdicts.jsonl"
    pairs = [*keys(EQUAL[:2]), *keys(DIFFERENT[:2]), ("56", "57")]
    with fresh.keeping(file):
        assert fresh.same(pairs) == [True, True, False, False, False]
        assert fresh.same(pairs) == [True, True, False, False, False]
    fresh.same([("y+1", "1+y")])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["same"] for row in rows] == [True, True, False, False]
    file.write_text(file.read_text().replace('"same":true', '"same":false') + '{"a": "torn')
    monkeypatch.setattr(verify, "Worker", lambda: pytest.fail("it was asked again"))
    again = Verifier(1)
    again.learn(file)
    with again.keeping(file):
        assert again.same(pairs) == [False] * 5
    assert len(file.read_text().splitlines()) == 4
    file.write_text("{}\n")
    with pytest.raises(DataError, match="is damaged. Remove it"):
        again.learn(file)


def test_an_open_run_folder_keeps_verdicts_and_a_reader_knows_them(tmp_path, monkeypatch):
    with RunFolder.open(settings(tmp_path)) as folder:
        assert equivalent("x+731", "731+x")
    assert not equivalent("x+732", "733+x") and len(folder.verdicts.read_text().splitlines()) == 1
    monkeypatch.setattr(verify, "verifier", Verifier(1))
    monkeypatch.setattr(verify, "Worker", lambda: pytest.fail("it was asked again"))
    RunFolder.existing(folder.path)
    assert equivalent("x+731", "731+x")


def test_ctrl_c_is_for_the_parent(ready):
    ready.process.send_signal(signal.SIGINT)
    assert ready.ask([*EQUAL[1], 2.0], 60) is True


@pytest.mark.slow
def test_an_interrupted_question_leaves_no_late_answer(verifier, monkeypatch):
    assert verifier.same([EQUAL[0]]) == [True]
    (interrupted,) = verifier.workers
    reading = Process.read

    def interrupt(self, seconds):
        monkeypatch.setattr(Process, "read", reading)
        self.process.stdout.close()
        return reading(self, seconds)

    monkeypatch.setattr(Process, "read", interrupt)
    with pytest.raises(ValueError, match="closed file"):
        verifier.same([EQUAL[1]])
    assert not interrupted.alive
    assert verifier.same([DIFFERENT[2], EQUAL[1]]) == [False, True]


@pytest.mark.slow
def test_many_threads_share_two_workers():
    verifier = Verifier(2)
    pairs = [(f"x+{n}", f"{n}+{'x' if n % 3 else 'x+1'}") for n in range(2, 26)]
    wanted = [bool(n % 3) for n in range(2, 26)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(verifier.same, [random.Random(0).sample(pairs, len(pairs)) for _ in range(8)]))
        again = list(threads.map(verifier.same, [pairs] * 8))
    assert all(sorted(one) == sorted(wanted) for one in found)
    assert again == [wanted] * 8
    verifier.close()


@pytest.mark.parametrize(
    ("program", "said"),
    [("/nowhere/python", "No such file"), ("/bin/false", "exit code"), ("", "cannot be started")],
)
@pytest.mark.slow
def test_a_process_that_cannot_be_started_is_a_clear_error(verifier, monkeypatch, program, said):
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(MaftError, match="The process that compares answers cannot be started") as caught:
        verifier.same([EQUAL[0]])
    assert said in str(caught.value) and "pip install 'math-verify[antlr4_13_2]'" in str(caught.value)
    monkeypatch.undo()
    assert verifier.same([EQUAL[0]]) == [True]


@pytest.mark.slow
def test_the_parent_loads_no_algebra_and_ends_without_a_warning():
    script = "import sys; from maft import equivalent; print(equivalent('x+1', '1+x'), {'sympy', 'math_verify'} & {*sys.modules})"
    assert python(script) == "True set()\n"


@pytest.mark.slow
def test_a_file_of_the_same_name_in_the_working_directory_is_not_the_library(tmp_path):
    (tmp_path / "math_verify.py").write_text("raise SystemExit('wrong one')")
    (tmp_path / "sympy.py").write_text("raise SystemExit('wrong one')")
    assert python("from maft import equivalent; print(equivalent('x+1', '1+x'))", cwd=tmp_path) == "True\n"


PARENT = """
import os, signal, sys, threading, time
from maft.answers import verify
verify.SECONDS = 0.75 if "{busy}" else 2.0
worker = verify.Worker().ready(60)
print(worker.process.pid, flush=True)
if "{busy}":
    threading.Thread(target=worker.ask, args=([*{pair!r}, verify.SECONDS], 60), daemon=True).start()
    time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@linux
@pytest.mark.parametrize("busy", ["", "busy"])
def test_no_worker_outlives_a_parent_that_is_killed(busy):
    parent = subprocess.run(
        [sys.executable, "-c", PARENT.format(busy=busy, pair=ENDLESS)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    assert gone(int(parent.stdout), seconds=4)


FORK = """
import os
from maft.answers import equivalent
assert equivalent("x+1", "1+x")
child = os.fork()
right = all(equivalent(f"x+{n}", f"{n}+x") and not equivalent(f"x+{n}", f"{n}-x") for n in range(1, 9))
if not child:
    os._exit(not right)
assert right and os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_workers_of_its_own():
    python(FORK)


# ---- hostile text

HOSTILE = {
    "tower": "9**9**9**9",
    "LaTeX tower": "9^{9^{9^{9}}}",
    "tower with a letter": "x+9^{9^{9^{9}}}",
    "factorials": "9999999!",
    "factorial of a factorial": "((999!)!)!",
    "powers of powers": "((9^{999})^{999})^{999}",
    "binomial": r"\binom{9^{9}}{8^{9}}",
    "100 kB": "x+" * 50_000 + "1",
    "1 kB": "x+" * 499 + "1",
    "brackets": "(" * 400 + "x" + ")" * 400,
    "ten brackets": "(" * 10 + "x" + ")" * 10,
    "fractions": r"\frac{1}{" * 30 + "x" + "}" * 30,
    "roots": r"\sqrt{" * 30 + "x" + "}" * 30,
    "sum": r"\sum_{n=1}^{10^{9}} \frac{1}{n}",
    "integral": r"\int_0^1 \sin(\cos(\sin(x^x))) dx",
    "operator": r"\operatorname{eye}(99999)",
    "python": "__import__('os').system('touch pwned')",
    "python in boxes": r"\text{__import__('os').system('touch pwned')}",
    "python in a list": "1, open('pwned','w')",
    "lambda": "(lambda: open('pwned', 'w'))()",
    "exec": r"exec(\"open('pwned','w')\")",
    "sympy": "Symbol('x').__class__.__base__",
    "many solutions": ",".join(f"a+{n}" for n in range(200)),
    "sets of sets": r"\{" + ",".join(rf"\{{a,{n}\}}" for n in range(100)) + r"\}",
    "unions": r"\cup".join(f"(a,{n})" for n in range(100)),
    "null": "x\x00+1",
    "surrogate": "x+\ud800",
    "line breaks": 'x+1"]\n["2", "2',
    "right to left": "\u202ex+1",
    "other digits": "x+٣",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_neither_hang_nor_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "SECONDS", 0.5)
    text = HOSTILE[name]
    assert equivalent("x+1", "1+x")  # the workers are there
    others = [f"{text} ", f"{text}+1", f"2+{text}", "x+1"]
    start = time.perf_counter()
    for other in others:
        equivalent(text, other)
    assert (
        time.perf_counter() - start < len(others) * (verify.SECONDS + 3) * verify.load()
    )  # a killed worker is started anew
    assert equivalent(text, others[0])
    assert list(tmp_path.iterdir()) == []


UNGUARDED = """
import json, sys
from maft.answers import worker
same = worker.load()
sys.addaudithook(worker.refuse)
for a, b in json.loads(sys.stdin.read()):
    try:
        print(same(a, b))
    except Exception as error:
        print(type(error))
"""


@pytest.mark.slow
def test_python_is_not_run_though_every_guard_before_the_parser_were_gone(tmp_path):
    texts = [
        HOSTILE[name] for name in ("python", "python in a list", "lambda", "exec", "sympy", "line breaks", "surrogate")
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNGUARDED],
        input=json.dumps([pair for text in texts for pair in ([text, "1"], ["x", text])]),
        capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    assert "True" not in done.stdout and len(done.stdout.splitlines()) == 2 * len(texts)
    assert list(tmp_path.iterdir()) == []


ATTEMPTS = """
import os, socket, subprocess, sys, sympy
from maft.answers import worker
same = worker.load()
assert same("x+1", "1+x")
attempts = [
    lambda: sympy.sympify("open('pwned', 'w')"),
    lambda: sympy.parse_expr("1+1"),
    lambda: eval("1+1"),
    lambda: exec("x = 1"),
    lambda: os.system("touch pwned"),
    lambda: subprocess.run(["touch", "pwned"]),
    lambda: open("pwned", "w"),
    lambda: open("pwned", "ab"),
    lambda: os.open("pwned", os.O_CREAT | os.O_WRONLY),
    lambda: socket.socket(),
    lambda: os.remove("there"),
    lambda: os.rename("there", "pwned"),
    lambda: os.fork(),
]
sys.addaudithook(worker.refuse)
for attempt in attempts:
    try:
        print("done", attempt())
    except Exception as error:
        print(repr(error))
"""


def test_a_worker_cannot_act(tmp_path):
    (tmp_path / "there").touch()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ATTEMPTS], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 13 and all("answer" in line for line in said), said
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_is_no_algebra_is_never_asked():
    asked = {name for name, text in HOSTILE.items() if compare.is_algebra(canonical(text))}
    assert asked == {
        "powers of powers",
        "factorial of a factorial",
        "binomial",
        "ten brackets",
        "operator",
        "other digits",
    }


# ---- speed

WAYS = ["{}", "{}", "{}", r"\left( {} \right)", "{}+1", "-{}", r"2\cdot\frac{{{}}}{{2}}", r"\frac{{{}}}{{2}}", "0 + {}"]


@pytest.mark.slow
def test_voting_over_500_questions_by_five_agents_is_quick():
    golds = [row["answer"] for row in math500()]
    rng = random.Random(0)

    def said(gold):
        if rng.random() < 0.03:
            return None
        return rng.choice(golds) if rng.random() < 0.15 else rng.choice(WAYS).format(gold)

    votes = [[said(gold) for _ in range(5)] for gold in golds]
    script = (
        "import json, sys, time\nfrom maft.answers import EQUALITIES\ngroup = EQUALITIES['mathematics']().classes\nvotes = json.loads(sys.stdin.read())\n"
        "for _ in range(2):\n    start = time.perf_counter()\n    classes = [group(answers) for answers in votes]\n"
        "    print(time.perf_counter() - start)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(votes),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    cold, warm = map(float, done.stdout.split())
    assert cold < 20 and warm < 2


def test_groups_of_real_answers_do_not_depend_on_the_order():
    golds = [row["answer"] for row in math500()]
    rng = random.Random(1)
    for gold in rng.sample(golds, 25):
        answers = [way.format(gold) for way in rng.sample(WAYS, 5)]
        classes = {frozenset(answers[i] for i in indices) for indices in group(answers)}
        shuffled = rng.sample(answers, 5)
        assert {frozenset(shuffled[i] for i in indices) for indices in group(shuffled)} == classes


@pytest.mark.slow
def test_the_worker_answers_lines_until_its_input_ends():
    lines = "".join(json.dumps([*pair, 5.0]) + "\n" for pair in (EQUAL[0], DIFFERENT[0], EQUAL[1]))
    done = subprocess.run(
        [sys.executable, "-m", "maft.answers.worker", str(2**31)],
        input=lines, capture_output=True, text=True, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    ready, *said = map(json.loads, done.stdout.splitlines())
    assert ready == "ready" and said == [True, False, True]
    assert worker.WARM
