"""Programs that try to break out, at every level of protection that this machine has; limits; what is left behind."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ENVIRONMENT

from maft.sandbox import levels, values
from maft.sandbox.limits import LEVELS, LIMITS, NAMESPACES, UNPROTECTED, Limits
from maft.sandbox.run import ENDED, LATE, Sandbox

HOSTILE = Path(__file__).parent / "cases" / "hostile"
SHORT = Limits(call_seconds=0.2, cpu_seconds=1, wall_seconds=2.0, memory_mb=192)
HERE = [name for name in LEVELS if levels.fault(name) is None]
STRONGEST = HERE[0] if HERE else None

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="programs run on Linux only")


def programs() -> dict[str, tuple[str, frozenset[str]]]:
    """Return the hostile programs by name, each with the levels at which its attack is known to work."""
    sections = {}
    for file in sorted(HOSTILE.glob("*.txt")):
        for section in re.split(r"^### ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            title, _, source = section.partition("\n")
            name, _, known = title.partition(" (works: ")
            sections[f"{file.stem}: {name}"] = source, frozenset(known.rstrip(")").split(", "))
    return sections


@pytest.fixture
def world(tmp_path):
    """Something to attack, and what of it must not change."""
    folder = tmp_path / "run"
    folder.mkdir()
    for parent in (folder, *folder.parents):
        if parent == Path("/tmp"):
            break
        parent.chmod(0o777)
    (folder / "votes.jsonl").write_text("votes\n")
    (folder / "config.json").write_text("{}\n")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for path in (*folder.iterdir(), secret):
        path.chmod(0o666)
    listener = socket.create_server(("127.0.0.1", 0))
    bystander = subprocess.Popen(["sleep", "600"])
    attacked = {
        "folder": str(folder),
        "secret": str(secret),
        "port": listener.getsockname()[1],
        "pid": bystander.pid,
        "parent": os.getpid(),
    }
    yield SimpleNamespace(attacked=attacked, folder=folder, bystander=bystander)
    bystander.kill()
    bystander.wait()
    listener.close()


def descendants() -> set[int]:
    """Return all processes that descend from this one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {os.getpid()}
    while more := {number for number, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def runs(number: int) -> bool:
    """Say whether a process is there and has not ended; nobody may have asked yet how it ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def call(sandbox: Sandbox, source: str, *arguments: object, name: str = "f"):
    """Run a program, call its function once, and return the outcome."""
    with sandbox.program(source, name) as program:
        return program.call([values.encode(argument) for argument in arguments])


def state(folder: Path) -> dict[str, object]:
    """Return what is in a folder: kind, rights, time and size of each file; opening one could wait for ever."""
    of = {path: path.lstat() for path in (folder, *folder.iterdir())}
    return {path.name: (stat.st_mode, stat.st_mtime_ns, stat.st_size, stat.st_nlink) for path, stat in of.items()}


def attack(sandbox: Sandbox, world: SimpleNamespace, chosen: dict[str, tuple[str, frozenset[str]]]) -> dict[str, str]:
    """Run hostile programs side by side with honest ones, and return what went wrong."""
    before, faults = state(world.folder), {}

    def run(name: str) -> None:
        started = time.monotonic()
        if call(sandbox, chosen[name][0], world.attacked) == {"value": "escaped"}:
            faults[name] = "it worked"
        if time.monotonic() - started > sandbox.limits.wall_seconds + 30:
            faults[name] = "it ran past its limits"
        if call(sandbox, "def f(x):\n    return sorted(x)", [3, 1, 2]) != {"value": values.encode([1, 2, 3])}:
            faults[name] = "an honest program beside it failed"

    idle = descendants()
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(run, [name for name, (_, known) in chosen.items() if sandbox.level not in known]))
    sandbox.close()
    if (after := state(world.folder)) != before:
        faults["files"] = f"{before} became {after}"
    if left := descendants() - idle:
        faults["left behind"] = f"{len(left)} processes"
    if world.bystander.poll() is not None:
        faults["bystander"] = "it was ended"
    return faults


def test_there_are_many_hostile_programs():
    assert len(programs()) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("level", HERE)
def test_no_program_breaks_out(level, world):
    if level == LIMITS and os.geteuid() != 0:
        pytest.skip("without another user to become, programs at the weakest level can signal the tests")
    assert attack(Sandbox(level, SHORT, num_forkers=6), world, programs()) == {}


QUICK = [
    *(
        "processes: fork bomb",
        "processes: a daemon that stays behind",
        "time: an endless loop that takes the timer away",
    ),
    *("memory: one large text", "memory: endless output", "files: write where anybody may", "files: read a secret"),
    *(
        "files: a link out of the scratch folder",
        "escape: a connection to a listener",
        "escape: a signal to the parent",
    ),
    *("verdict: a forged outcome for every call", "verdict: another harness", "verdict: a list that never ends"),
]


def test_a_few_of_each_kind_do_not_break_out(world):
    every = programs()
    assert attack(Sandbox(STRONGEST, SHORT, num_forkers=4), world, {name: every[name] for name in QUICK}) == {}


@pytest.mark.parametrize("level", HERE)
def test_ordinary_programs_run_at_every_level(level):
    sandbox = Sandbox(level, SHORT)
    source = (
        "import math, re, collections, itertools, random, string, json, threading\n"
        "def f(n):\n    return [math.gcd(n, 12), re.sub('a', 'b', 'aa'), collections.Counter('aab'), random.random()]"
    )
    first, second = call(sandbox, source, 8), call(sandbox, source, 8)
    assert values.decode(first["value"])[:3] == [4, "bb", {"a": 2, "b": 1}]
    assert first == second  # chance is the same in every run
    sandbox.close()


def test_outcomes_say_what_happened():
    sandbox = Sandbox(STRONGEST, SHORT)
    source = (
        "def f(x):\n    if x == 0: return 1 / x\n    if x == 1: return 'a' * 10**12\n    if x == 2:\n        while True: pass\n"
        "    if x == 3: return 'a' * 10**5\n    if x == 4: import os; os._exit(0)\n    return x"
    )
    with sandbox.program(source, "f") as program:
        outcomes = [program.call([values.encode(x)]) for x in (7, 0, 1, 2, 3, 4, 7)]
    assert outcomes == [
        {"value": ["int", "0x7"]},
        {"error": "ZeroDivisionError"},
        {"stopped": "memory"},
        {"stopped": "time"},
        {"stopped": "size"},
        ENDED,
        ENDED,
    ]
    sandbox.close()


def test_late_programs_and_forged_reasons_have_a_word():
    sandbox = Sandbox(STRONGEST, SHORT._replace(wall_seconds=0.5))
    assert call(sandbox, "import time\ndef f(x):\n    time.sleep(9)", 1) == LATE
    forge = "import os\ndef f(x):\n    os.write(3, b'{\"stopped\": [1]}\\n')"
    assert call(sandbox, forge, 1) == ENDED
    sandbox.close()


def test_a_program_has_a_scratch_folder_of_its_own():
    if NAMESPACES not in HERE:
        pytest.skip("at other levels nothing can be written")
    sandbox = Sandbox(NAMESPACES, SHORT)
    source = (
        "def f():\n    with open('note.txt', 'a') as file:\n        file.write('x')\n    return open('note.txt').read()"
    )
    assert [call(sandbox, source), call(sandbox, source)] == [{"value": "x"}] * 2
    sandbox.close()


def test_a_forker_that_dies_is_replaced():
    sandbox = Sandbox(STRONGEST, SHORT)
    assert call(sandbox, "def f(x):\n    return x", 1) == {"value": ["int", "0x1"]}
    forkers = [n for n in descendants() if b"maft.sandbox.forker" in Path(f"/proc/{n}/cmdline").read_bytes()]
    for number in forkers:
        os.kill(number, 9)
    while any(map(runs, forkers)):
        time.sleep(0.01)
    assert call(sandbox, "def f(x):\n    return x", 1) == {"value": ["int", "0x1"]}
    sandbox.close()


def test_every_level_says_what_it_does_not_protect_from():
    assert set(UNPROTECTED) == set(LEVELS)
    level = levels.strongest()
    assert level.name == STRONGEST and UNPROTECTED[level.name] in level.sentence
    assert level.record["level"] == level.name and set(level.record["not_available"]) <= set(LEVELS)


def test_programs_end_with_the_process_that_runs_them(tmp_path):
    script = (
        "import sys\nfrom maft.sandbox.run import Sandbox\n"
        f"with Sandbox({STRONGEST!r}).program('import time\\ndef f():\\n    time.sleep(60)', 'f') as program:\n"
        "    print('runs', flush=True)\n    program.call([])"
    )
    earlier = descendants()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout.readline() == "runs\n"
        started = descendants() - earlier - {process.pid}
        assert started
        process.kill()
    until = time.monotonic() + 20
    while any(map(runs, started)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(runs, started))


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -(10**40), 1.5, float("inf"), 1 + 2j, "text\ud800", b"\x00\xff", [], [1, [2, (3,)]], ()),
        *({"a": [1], (1, 2): None}, {1, "a", (2, 3)}, {}),
    ],
)
def test_values_travel_as_json(value):
    assert values.decode(json.loads(json.dumps(values.encode(value)))) == value


def test_what_is_no_encoded_value_is_refused():
    for content in (1, [], ["int"], ["int", "zz"], ["int", None], ["dict", 7], ["what", 1], [[], {}], {"a": 1}):
        with pytest.raises(ValueError):
            values.decode(content)


def filtered(number: int) -> bool:
    """Say whether the kernel filters the system calls of a process."""
    return "Seccomp:\t2" in Path(f"/proc/{number}/status").read_text()


@pytest.mark.skipif("seccomp" not in HERE, reason="the kernel filters no system calls here")
@pytest.mark.slow
def test_our_own_workers_are_confined_too():
    from maft.answers import verify
    from maft.tasks.gym_process import Gym

    assert verify.verifier.same([(r"\sqrt{8}x", r"2x\sqrt{2}")]) == [True]
    gym = Gym("spell_backward", {"size": 2, "seed": 0})
    assert len(gym.questions()) == 2
    assert filtered(verify.verifier.workers[0].process.pid) and filtered(gym._process.process.pid)


def test_a_value_that_is_made_to_take_long_is_refused_at_once():
    deep = ["list", []]
    for _ in range(200):
        deep = ["set", [deep]]
    with pytest.raises(ValueError):
        values.comparable(deep)
