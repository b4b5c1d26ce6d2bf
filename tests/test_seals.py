"""A changed file of a run is noticed when the run continues, and by `maft verify`."""

import json
import shutil

import pytest
from helpers import settings

import maft
from maft.errors import DataError
from maft.evaluation import votes
from maft.files import read_records
from maft.runs import seals


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return maft.run(settings(tmp_path_factory.mktemp("runs")), quiet=True)


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    return maft.open(tmp_path / "run")


def flip_digit(path):
    data = path.read_bytes()
    place = next(n for n in range(len(data) // 2, len(data)) if chr(data[n]).isdigit())
    path.write_bytes(data[:place] + (b"1" if data[place : place + 1] != b"1" else b"2") + data[place + 1 :])


def test_every_finished_file_has_a_checksum(finished):
    sealed = {seal.file for seal in read_records(finished.folder.checksums, seals.Seal)}
    data = {p.relative_to(finished.path).as_posix() for p in finished.path.rglob("*.json*")}
    own = {"config.json", "manifest.json", "events.jsonl", "metrics.jsonl", "checksums.jsonl"}
    assert data - own <= sealed
    assert seals.damage(finished.folder) == []


FILES = [
    "problems/eval.jsonl", "problems/train.jsonl", "iter_01/debates.jsonl", "iter_01/votes.jsonl",
    "iter_01/examples/generator_0.jsonl", "iter_01/eval/maft.jsonl", "iter_01/eval/summary.json", "iter_00/eval/debates.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_changed_digit_is_said(copy, name):
    flip_digit(copy.path / name)
    assert [found.file for found in seals.damage(copy.folder)] == [name]
    with pytest.raises(DataError, match=f"{name}: its content differs"):
        maft.run(copy.path, quiet=True)


def test_a_damaged_agent_is_finetuned_again(copy, finished):
    agent = copy.folder.agent(1, "critic_0")
    file = next(agent.glob("*.json"))
    content = file.read_bytes()
    file.write_bytes(content[:-3])
    maft.run(copy.path, quiet=True)
    assert file.read_bytes() == content and seals.damage(copy.folder) == []
    assert [p.name for p in agent.parent.glob(".critic_0.damaged-*")]


def test_a_missing_file_is_named_by_verify_and_by_the_report(copy):
    folder = copy.folder
    folder.problems("train").unlink()
    assert [(found.file, found.what) for found in seals.damage(folder)] == [("problems/train.jsonl", "it is missing")]
    assert seals.damage(folder, thorough=False) == []
    with pytest.raises(DataError, match=r"problems/train\.jsonl is missing, .* Restore it"):
        votes.problems(folder, "train")


def test_what_is_removed_is_made_again_and_sealed_again(copy):
    shutil.rmtree(copy.path / "iter_01" / "eval")
    maft.run(copy.path, quiet=True)
    assert seals.damage(copy.folder) == [] and copy.folder.evaluated(1)


def test_a_run_of_an_older_maft_gets_checksums(copy):
    copy.folder.checksums.unlink()
    maft.run(copy.path, quiet=True)
    assert seals.num_sealed(copy.folder) > 20


def test_verify_tells_and_exits_with_1(copy, call):
    assert call("verify", str(copy.path))[0] == 0
    copy.folder.checksums.rename(copy.path / "elsewhere")
    assert "has no checksums" in call("verify", str(copy.path))[2]
    (copy.path / "elsewhere").rename(copy.folder.checksums)
    flip_digit(copy.path / FILES[0])
    code, out, _ = call("verify", str(copy.path), "--json")
    assert code == 1 and json.loads(out) == [{"file": FILES[0], "what": "its content differs"}]
