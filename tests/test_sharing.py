"""Finetuned agents merged into their base, and pushed to a stand-in of the hub."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ENVIRONMENT, run, settings
from hub_stand_in import READER, WRITER, Fault, Hub
from huggingface_hub import ModelCard
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save
from tiny import dialogue, slow

from maft import models
from maft.errors import install_line
from maft.evaluation import series as metrics
from maft.files import appearing_whole
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.sharing import sections
from maft.sharing.sections import Held

# What huggingface_hub gives to httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SUMMARY = {
    "init_adapter": None,
    "num_examples": 7,
    "num_dropped_too_long": 1,
    "tokens": 700,
    "completion_tokens": 70,
    "losses": [1.5, 0.5],
    "versions": {"maft": "0.1.0", "peft": "0.21.2"},
}
RANK = 2
NAMES = ("generator_0", "generator_1", "critic_0", "critic_1")


class Adapters:
    """A trainer that draws an adapter for the tests' tiny model for each agent; it says where its base was loaded."""

    def train(self, jobs, settings, on_progress):
        for job in jobs:
            rng = np.random.default_rng(job.seed)
            with appearing_whole(job.output) as folder:
                (folder / "adapter_model.safetensors").write_bytes(save(lora(rng)))
                shape = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
                where = {"base_model_name_or_path": os.path.abspath(job.base_model), "task_type": "CAUSAL_LM"}
                (folder / "adapter_config.json").write_text(json.dumps(shape | where))
                (folder / "training.json").write_text(json.dumps(SUMMARY | {"agent": job.agent}))
                (folder / "README.md").write_text("the trainer's")
                (folder / "notes.log").write_text(f"trained in {folder}")


def lora(rng) -> dict:
    def pair(module: str, width: int, layer: int) -> dict:
        name = f"base_model.model.model.layers.{layer}.{module}"
        return {
            f"{name}.lora_A.weight": rng.normal(0, 0.4, size=(RANK, 16)).astype("float32"),
            f"{name}.lora_B.weight": rng.normal(0, 0.4, size=(width, RANK)).astype("float32"),
        }

    return {k: v for n in range(2) for k, v in (pair("self_attn.q_proj", 16, n) | pair("mlp.up_proj", 32, n)).items()}


def finished(runs: Path, *overrides: str, **sections):
    return run(settings(runs, "debate.num_agents=2", *overrides, **sections), trainer=Adapters())


@pytest.fixture(scope="module")
def society(tmp_path_factory):
    """A finished run of four agents whose base is the packaged model, as far as it says."""
    return finished(tmp_path_factory.mktemp("runs"), "num_iterations=2", model=models.PACKAGED)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, in place of the hub, for a user who is logged in."""
    with Hub() as stand_in:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield stand_in


def test_a_society_is_pushed_with_a_folder_for_each_agent_below_one_card(society, hub, call):
    code, out, err = call("push", str(society.path), "me/sums")
    assert (code, err) == (0, "") and f"{hub.url}/me/sums" in out
    sent = hub.files("me/sums")
    mine = ("README.md", "adapter_config.json", "adapter_model.safetensors", "training.json")
    assert set(sent) == {"README.md", *(f"{agent}/{file}" for agent in NAMES for file in mine)}
    for agent in NAMES:
        weights = society.agent(2, agent) / "adapter_model.safetensors"
        assert sent[f"{agent}/adapter_model.safetensors"] == weights.read_bytes()
        assert agent in sent[f"{agent}/README.md"].decode()
    assert hub.repos["me/sums"].messages == ["Iteration 2 of run: generator_0, generator_1, critic_0, critic_1"]
    assert not hub.repos["me/sums"].private


def test_a_card_claims_votes_only_where_there_were_some(society, tmp_path):
    assert "no known answers were used" in sections.body(Held(society, 2), [], "a/b", "c/d", adapter=True)
    baseline = RunFolder(tmp_path, society.config)  # STaR writes no votes
    shutil.copytree(society.path / "problems", tmp_path / "problems")
    assert "STaR: known answers, or votes" in sections.body(Held(baseline, 2), [], "a/b", "c/d", adapter=True)


def test_one_agent_is_pushed_to_the_root_with_a_card_that_tells_how_it_came_about(society, hub, call):
    assert call("push", str(society.path), "me/critic", "--agent", "critic_1", "--iteration", "1")[0] == 0
    sent = hub.files("me/critic")
    assert set(sent) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "training.json"}
    card = ModelCard(sent["README.md"].decode())
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and card.data.library_name == "peft"
    assert {"maft", "multiagent-finetuning", "lora"} <= set(card.data.tags) and card.data.license == "apache-2.0"
    line = next(one for one in metrics.of_society(society, 1) if one.get("agent") == "critic_1")
    assert [one.metric_value for one in card.data.eval_results] == [round(line["accuracy"], 4)]
    assert "# critic_1, iteration 1" in card.text and "arxiv.org/abs/2501.05707" in card.text
    assert "7 examples, 1 dropped" in card.text and "maft 0.1.0" in card.text
    assert "Task `arithmetic`: 10 training questions, debated by 2 generators and 2 critics" in card.text
    accuracy, bounds = line["accuracy"], (100 * line["ci_low"], 100 * line["ci_high"])
    assert f"{accuracy:.1%} ({bounds[0]:.1f} - {bounds[1]:.1f}) |" in card.text
    assert "On 6 held-out questions" in card.text and "seed 0" in card.text
    assert 'PeftModel.from_pretrained(model, "me/critic")' in card.text


def test_one_model_for_all_is_one_agent_that_speaks_for_all(tmp_path, hub, call):
    path = str(finished(tmp_path, "society.one_model=true", model=models.PACKAGED).path)
    assert call("push", path, "me/one")[0] == 0
    sent = hub.files("me/one")
    assert {name.partition("/")[0] for name in sent} == {"README.md", "generator_0"}
    everybody = "society/generator_0 society/generator_0"
    assert f"--generators {everybody} --critics {everybody}\n" in sent["README.md"].decode()
    assert "One model learnt from all agents' examples" in sent["generator_0/README.md"].decode()


def test_nothing_that_is_sent_names_this_machine(society, hub, call):
    assert call("push", str(society.path), "me/sums")[0] == 0
    secrets = {WRITER, str(Path.home()), str(society.path.parent), os.getcwd(), platform.node(), "/tmp"}
    texts = {name: data.decode() for name, data in hub.files("me/sums").items() if not name.endswith(".safetensors")}
    for name, text in texts.items():
        assert not [secret for secret in secrets if re.search(rf"(?<!\w){re.escape(secret)}\b", text)], name
    config = json.loads(hub.files("me/sums")["critic_0/adapter_config.json"])
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert Path(
        json.loads((society.agent(2, "critic_0") / "adapter_config.json").read_text())["base_model_name_or_path"]
    ).is_absolute()


def test_a_dry_run_shows_files_and_card_and_asks_nobody(society, hub, call, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    code, out, _ = call("push", str(society.path), "me/sums", "--dry-run", "--private", "--branch", "two")
    assert code == 0 and not hub.asked
    size = (society.agent(2, "critic_0") / "adapter_model.safetensors").stat().st_size
    assert re.search(rf"^ +{size:,}  critic_0/adapter_model.safetensors$", out, re.M)
    assert "Repository: me/sums, a model, branch two, private" in out and "base_model:" in out
    assert out.endswith("Nothing was sent.\n")


def test_pushing_again_sends_no_weights_again(society, hub, call):
    for _ in range(2):
        assert call("push", str(society.path), "me/sums", "--quiet")[0] == 0
    assert [count for asked, count in hub.asked.items() if asked.startswith("PUT")] == [1, 1, 1, 1]
    assert len(hub.repos["me/sums"].messages) == 1


def test_an_iteration_can_have_a_branch_of_its_own(society, hub, call):
    assert call("push", str(society.path), "me/sums")[0] == 0
    code, out, _ = call(
        "push", str(society.path), "me/sums", "--iteration", "1", "--branch", "one", "--agent", "critic_0"
    )
    assert code == 0 and "/me/sums/tree/one" in out
    ours = (society.agent(1, "critic_0") / "adapter_model.safetensors").read_bytes()
    assert hub.files("me/sums", "one")["adapter_model.safetensors"] == ours
    assert "adapter_model.safetensors" not in hub.files("me/sums")
    assert 'revision="one"' in hub.files("me/sums", "one")["README.md"].decode()


def test_private_is_private_or_nothing_is_sent(society, hub, call):
    assert call("push", str(society.path), "me/secret", "--private")[0] == 0
    assert hub.repos["me/secret"].private
    hub.put("me/open", {})
    code, _, err = call("push", str(society.path), "me/open", "--private")
    assert code == 2 and "exists and is public" in err and not hub.files("me/open")


def test_a_model_of_somebody_else_is_not_replaced(society, hub, call):
    hub.put("me/base", {"model.safetensors": b"weights", "config.json": b"{}"})
    code, _, err = call("push", str(society.path), "me/base", "--agent", "critic_0")
    assert code == 2 and "did not send: model.safetensors" in err
    assert set(hub.files("me/base")) == {"model.safetensors", "config.json"}


def test_a_whole_model_is_not_put_where_an_adapter_would_be_loaded_in_its_place(tmp_path, hub, call):
    folder = finished(tmp_path, model="org/base")
    assert call("push", str(folder.path), "me/mixed", "--agent", "critic_0")[0] == 0
    whole = folder.agent(1, "critic_0")
    (whole / "adapter_config.json").rename(whole / "config.json")
    (whole / "adapter_model.safetensors").rename(whole / "model.safetensors")
    for asked in (("--agent", "critic_0", "--branch", "whole"), ("--branch", "other")):
        code, _, err = call("push", str(folder.path), "me/mixed", *asked)
        assert code == 2 and "has an adapter at its root" in err
    assert call("push", str(folder.path), "me/mixed", "--agent", "critic_0")[0] == 0
    assert set(hub.files("me/mixed")) == {"README.md", "config.json", "model.safetensors", "training.json"}


@pytest.mark.parametrize(
    ("repo", "token", "said"),
    [
        ("me/sums", None, "Run `hf auth login`, or set HF_TOKEN"),
        (
            "me/sums",
            "hf_expired",
            "answers 401 (Invalid credentials in Authorization header): it does not know the token",
        ),
        ("me/sums", READER, "may not write to me/sums"),
        ("them/sums", WRITER, "may not write to them/sums"),
        ("sums", WRITER, "must be USER/NAME"),
        ("me/sums/critics", WRITER, "is no name of a repository"),
        ("me/a--b", WRITER, "is no name of a repository"),
        ("../runs", WRITER, "is no name of a repository"),
    ],
)
def test_a_user_who_may_not_push_is_told_what_to_do(society, hub, call, monkeypatch, repo, token, said):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    code, out, err = call("push", str(society.path), repo)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1
    assert not hub.repos


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("POST", "/api/repos/create", 500, "hub is ill"), "answers 500 (hub is ill). Wait a while."),
        (Fault("POST", "/api/repos/create", 400, "no such owner"), "answers 400 (no such owner)"),
        (Fault("POST", "/api/repos/create", 0), "cannot be reached, or the upload broke off"),
        (Fault("POST", "/api/models/me/sums/commit", 404, "gone"), "there is no me/sums that this token can see"),
        (Fault("POST", "/api/models/me/sums/commit", 502, "down"), "answers 502 (down). Wait a while."),
        (Fault("POST", "/api/models/me/sums/commit", 0), "run the same command again to continue"),
    ],
)
def test_a_hub_that_fails_is_one_clean_line_and_the_same_command_goes_on(society, hub, call, fault, said):
    hub.faults.append(fault)
    code, out, err = call("push", str(society.path), "me/sums", "--quiet")
    assert (code, out) == (2, "") and said in err and "Traceback" not in err
    assert call("push", str(society.path), "me/sums", "--quiet")[0] == 0
    assert len(hub.files("me/sums")) == 17


def test_an_upload_that_breaks_off_goes_on_with_what_is_owed(society, hub, call):
    weights = (society.agent(2, "critic_1") / "adapter_model.safetensors").read_bytes()
    path = f"/lfs/{hashlib.sha256(weights).hexdigest()}"
    hub.faults += [Fault("PUT", path, 0)] * 6  # the client asks six times
    code, _, err = call("push", str(society.path), "me/sums", "--quiet")
    assert code == 2 and "broke off" in err and "same command again" in err
    there = set(hub.stored)
    assert there and path.removeprefix("/lfs/") not in there and not hub.files("me/sums")
    hub.asked.clear()
    assert call("push", str(society.path), "me/sums", "--quiet")[0] == 0
    assert not [oid for oid in there if hub.asked[f"PUT /lfs/{oid}"]]
    assert len(hub.files("me/sums")) == 17


def test_a_card_that_the_hub_refuses_is_told(society, hub, call):
    code, out, err = call("push", str(society.path), "me/sums", "--license", "nonsense")
    assert (
        (code, out) == (2, "") and "refuses the card" in err and "must be one of" in err and len(err.splitlines()) == 1
    )
    assert call("push", str(society.path), "me/sums", "--license", "mit")[0] == 0
    assert ModelCard(hub.files("me/sums")["README.md"].decode()).data.license == "mit"


def test_without_a_network_nothing_is_lost(society, call, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    code, _, err = call("push", str(society.path), "me/sums")
    assert code == 2 and "the hub cannot be reached" in err and len(err.splitlines()) == 1


def test_without_the_hubs_client_the_install_line_is_told(society, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", None)
    code, _, err = call("push", str(society.path), "me/sums")
    assert code == 2 and install_line("hub") in err


def test_a_base_that_nobody_else_has_needs_its_name_on_the_hub(tmp_path, hub, call):
    base = tmp_path / "my_model"
    base.mkdir()
    (base / "config.json").write_text("{}")
    path = str(finished(tmp_path / "runs", model=str(base)).path)
    code, _, err = call("push", path, "me/sums", "--dry-run")
    assert code == 2 and str(base) in err and "--base-model ORG/NAME" in err
    code, _, err = call("push", path, "me/sums", "--base-model", "mine")
    assert code == 2 and "--base-model must be USER/NAME" in err
    assert call("push", path, "me/sums", "--base-model", "org/my-model")[0] == 0
    sent = hub.files("me/sums")
    assert ModelCard(sent["critic_0/README.md"].decode()).data.base_model == "org/my-model"
    assert not [name for name, data in sent.items() if b"my_model" in data]


def test_agents_of_several_bases_each_name_their_own(tmp_path, hub, call):
    society = {"generators": ["org/a", "org/b"], "critics": ["org/a", "org/a"]}
    path = str(finished(tmp_path / "runs", society=society).path)
    assert call("push", path, "me/mixed")[0] == 0
    sent = hub.files("me/mixed")
    bases = {agent: json.loads(sent[f"{agent}/adapter_config.json"])["base_model_name_or_path"] for agent in NAMES}
    assert list(bases.values()) == ["org/a", "org/b", "org/a", "org/a"]
    assert [ModelCard(sent[f"{agent}/README.md"].decode()).data.base_model for agent in NAMES] == list(bases.values())
    card = ModelCard(sent["README.md"].decode())
    assert card.data.base_model == ["org/a", "org/b"] and "| generator | org/b |" in card.text
    assert "maft debate" not in card.text  # one command line has one base


def test_a_card_tells_the_shape_of_the_agents_own_adapter(tmp_path, hub, call):
    society = {"generators": [{"lora": {"rank": 3}}, {"model": "org/b"}]}
    path = str(finished(tmp_path / "runs", society=society, model="org/a").path)
    assert call("push", path, "me/mixed")[0] == 0
    cards = [hub.files("me/mixed")[f"{agent}/README.md"].decode() for agent in NAMES[:2]]
    assert "lora.rank 3," in cards[0] and "lora.rank 16," in cards[1]
    assert ["base_model: org/a" in cards[0], "base_model: org/b" in cards[1]] == [True, True]


def test_agents_of_several_folders_are_pushed_one_by_one(tmp_path, hub, call):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    society = {"generators": [str(tmp_path / "a"), str(tmp_path / "b")]}
    path = str(finished(tmp_path / "runs", society=society, model="org/c").path)
    code, _, err = call("push", path, "me/mixed", "--base-model", "org/a")
    assert code == 2 and "push them one by one, with --agent" in err
    assert call("push", path, "me/first", "--agent", "generator_0", "--base-model", "org/a")[0] == 0
    assert json.loads(hub.files("me/first")["adapter_config.json"])["base_model_name_or_path"] == "org/a"


def test_a_path_in_a_file_that_would_be_sent_is_refused(tmp_path, hub, call):
    folder = finished(tmp_path, model="org/base")
    file = folder.agent(1, "critic_1") / "training.json"
    file.write_text(json.dumps(SUMMARY | {"note": [str(tmp_path)]}))
    code, _, err = call("push", str(folder.path), "me/sums")
    assert code == 2 and f"{file} names {tmp_path}" in err and not hub.repos


# Which agents


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--agent", "critic_9"), "must be one of generator_0, generator_1, critic_0, critic_1 or all; got critic_9"),
        (("--agent", "critic_0", "--iteration", "3"), "--iteration must be 1 to num_iterations = 2, got 3"),
        ((), "Choose one with --agent NAME, or --agent all"),
    ],
)
def test_an_agent_that_is_not_there_is_refused_with_those_that_are(society, call, tmp_path, arguments, said):
    code, _, err = call("merge", str(society.path), "--output", str(tmp_path / "out"), *arguments)
    assert code == 2 and said in err and not (tmp_path / "out").exists()


def test_agents_without_weights_are_refused(tmp_path, call):
    nothing = run(settings(tmp_path, "name=nothing"))
    code, _, err = call("merge", str(nothing.path), "--output", str(tmp_path / "out"), "--agent", "critic_0")
    assert code == 2 and "holds no weights" in err
    hosted = finished(tmp_path, "name=hosted")
    (hosted.agent(1, "critic_0") / "hosted.json").write_text('{"model": "ft:gpt:1"}')
    code, _, err = call("push", str(hosted.path), "me/sums", "--agent", "critic_0", "--dry-run")
    assert code == 2 and "critic_0 is the hosted model ft:gpt:1" in err


def test_an_unfinished_run_has_nothing_to_give(tmp_path, call):
    folder = finished(tmp_path)
    shutil.rmtree(folder.agent(1, "critic_1"))
    code, _, err = call("merge", str(folder.path), "--output", str(tmp_path / "out"), "--agent", "critic_0")
    assert code == 2 and "no finished iteration yet" in err
    asked = ("--agent", "critic_1", "--iteration", "1")
    code, _, err = call("merge", str(folder.path), "--output", str(tmp_path / "out"), *asked)
    assert code == 2 and "critic_1 of iteration 1 is not finetuned yet" in err


def test_a_folder_with_something_in_it_is_not_merged_into(society, call, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = call("merge", str(society.path), "--agent", "critic_0", "--output", str(tmp_path))
    assert code == 2 and "exists and is not empty" in err and [p.name for p in tmp_path.iterdir()] == ["file"]


# Merged models


def test_without_torch_the_install_line_is_told_and_nothing_is_left(society, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = call("merge", str(society.path), "--agent", "critic_0", "--output", str(tmp_path / "out"), "--quiet")
    assert code == 2 and "[hf]" in err and not any(tmp_path.iterdir())


@slow
def test_an_adapter_that_does_not_fit_is_refused_and_nothing_is_left(tiny, tmp_path, call):
    folder = finished(tmp_path / "runs", model=tiny)
    weights = folder.agent(1, "critic_1") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    code, _, err = call("merge", str(folder.path), "--agent", "all", "--output", str(tmp_path / "out"), "--quiet")
    assert code == 2 and "is damaged" in err and "critic_1" in err and [p.name for p in tmp_path.iterdir()] == ["runs"]


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_is_the_base_with_the_adapter_added_and_rounded_once(tiny, tmp_path, call, dtype):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    AutoModelForCausalLM.from_pretrained(tiny, dtype=getattr(torch, dtype)).save_pretrained(base)
    folder, out = finished(tmp_path / "runs", model=str(base)), tmp_path / "merged"
    out.mkdir()  # an empty folder may be there
    code, said, _ = call("merge", str(folder.path), "--agent", "critic_1", "--output", str(out), "--quiet")
    assert code == 0 and said == f"Iteration 1: critic_1 in {out}\n"

    adapter = folder.agent(1, "critic_1")
    drawn = load_numpy(adapter / "adapter_model.safetensors")
    before, after = tensors(base), tensors(out)
    assert before.keys() == after.keys() and {t.dtype for t in after.values()} == {getattr(torch, dtype)}
    for name, tensor in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        update = 0
        if f"{key}.lora_A.weight" in drawn:
            update = torch.from_numpy(8 / RANK * drawn[f"{key}.lora_B.weight"] @ drawn[f"{key}.lora_A.weight"])
        expected = (tensor.float() + update).to(tensor.dtype)
        torch.testing.assert_close(after[name], expected)

    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        untrained = model(ids).logits
        wanted = PeftModel.from_pretrained(model, adapter)(ids).logits
        got = AutoModelForCausalLM.from_pretrained(out)(ids).logits.float()
    error = ((got - wanted).norm() / wanted.norm()).item()
    assert error < (1e-5 if dtype == "float32" else 0.05) and (untrained - wanted).norm() > 0.5 * wanted.norm()

    whole = {"README.md", "training.json", "config.json", "generation_config.json", "model.safetensors"}
    assert {p.name for p in out.iterdir()} >= whole | {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert (out / "chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()
    card = ModelCard((out / "README.md").read_text())
    assert card.data.library_name == "transformers" and "merged" in card.data.tags and str(tmp_path) not in card.content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "merged", "runs"]


@slow
def test_maft_answers_from_a_merged_model_as_from_base_and_adapter(tiny, tmp_path, call):
    from maft.config import EngineConfig
    from maft.records import AgentRef, Request, SamplingParams
    from maft.samplers.transformers import Transformers

    folder = finished(tmp_path / "runs", model=tiny)
    assert call("merge", str(folder.path), "--agent", "all", "--output", str(tmp_path / "merged"), "--quiet")[0] == 0
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {"generator_0", "generator_1", "critic_0", "critic_1"}
    greedy = SamplingParams(temperature=0, max_new_tokens=20)
    requests = [
        Request(agent=agent, messages=dialogue("What is 3 + 4?"), sampling=greedy, seed=0)
        for adapted in societies.after(folder, 1).agents
        for agent in (adapted, AgentRef(role=adapted.role, index=0, model=str(tmp_path / "merged" / adapted.name)))
    ]
    texts = [reply.text for reply in Transformers(EngineConfig(dtype="float32")).sample(requests)]
    assert texts[::2] == texts[1::2] and len(set(texts)) == 4


@slow
def test_an_agent_that_is_a_whole_model_is_copied(tiny, tmp_path, call, hub):
    class Whole(Adapters):
        def train(self, jobs, settings, on_progress):
            super().train(jobs, settings, on_progress)
            for job in jobs:
                for name in ("adapter_config.json", "adapter_model.safetensors"):
                    (job.output / name).unlink()
                shutil.copytree(tiny, job.output, dirs_exist_ok=True)

    config = settings(tmp_path / "runs", "debate.num_agents=2", model=tiny, train={"method": "full"})
    folder, out = run(config, trainer=Whole()), tmp_path / "out"
    assert call("merge", str(folder.path), "--agent", "critic_0", "--output", str(out), "--quiet")[0] == 0
    assert tensors(out).keys() == tensors(Path(tiny)).keys()
    assert "All weights, finetuned, of" in (out / "README.md").read_text()
    asked = ("--agent", "critic_0", "--base-model", "org/tiny")
    assert call("push", str(folder.path), "me/full", *asked)[0] == 0
    sent = hub.files("me/full")
    assert set(sent) == {p.name for p in out.iterdir()} - {"notes.log"}
    assert json.loads(sent["config.json"]) == json.loads((Path(tiny) / "config.json").read_text())
    assert ModelCard(sent["README.md"].decode()).data.library_name == "transformers"


# From the hub again


@pytest.fixture
def elsewhere(hub, tmp_path):
    """Run a script or `maft` where nothing is known but the hub."""

    def elsewhere(*command: str) -> str:
        home = tmp_path / "elsewhere"
        home.mkdir(exist_ok=True)
        names = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf"), "HF_TOKEN": READER}
        done = subprocess.run(
            [sys.executable, "-c", *command],
            cwd=home,
            env=ENVIRONMENT | names,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return elsewhere


def code_of(card: bytes) -> str:
    return re.findall(r"```python\n(.*?)```", card.decode(), re.S)[0].replace(
        "max_new_tokens=256", "max_new_tokens=9, do_sample=False"
    )


@slow
def test_what_was_pushed_is_loaded_by_the_code_of_its_card(tiny, tmp_path, call, hub, elsewhere):
    hub.put("org/tiny", {p.name: p.read_bytes() for p in Path(tiny).iterdir()})
    path = str(finished(tmp_path / "runs", model=tiny).path)
    base = ("--base-model", "org/tiny", "--quiet")
    one = ("--agent", "generator_0")
    assert call("push", path, "me/sums", *base)[0] == 0
    assert call("push", path, "me/first", *one, *base)[0] == 0
    assert call("push", path, "me/sums-merged", "--merged", *base)[0] == 0
    assert call("push", path, "me/first-merged", *one, *base)[0] == 0
    assert call("push", path, "me/first-merged", *one, "--merged", *base)[0] == 0
    assert "adapter_config.json" not in hub.files("me/first-merged")
    cards = [
        hub.files("me/sums")["generator_0/README.md"],
        hub.files("me/sums")["README.md"],
        hub.files("me/first")["README.md"],
        hub.files("me/sums-merged")["generator_0/README.md"],
        hub.files("me/first-merged")["README.md"],
        hub.files("me/sums")["critic_1/README.md"],
    ]
    said = elsewhere("".join(f"print('reply:')\n{code_of(card)}" for card in cards)).split("reply:\n")[1:]
    assert len(said) == 6 and said[0] and len(set(said[:5])) == 1 and said[5] != said[0]


SMALL = """
num_iterations: 1
task: {name: arithmetic, num_train: 2, num_eval: 2}
debate: {num_agents: 2, summarizer: none}
engine: {sampler: transformers, dtype: float32}
sampling: {train: {generator: {max_new_tokens: 4}, critic: {max_new_tokens: 4}}}
"""


@slow
def test_maft_runs_from_the_hub_what_it_pushed_there(tiny, tmp_path, call, hub, elsewhere):
    hub.put("org/tiny", {p.name: p.read_bytes() for p in Path(tiny).iterdir()})
    path = str(finished(tmp_path / "runs", model=tiny).path)
    base = ("--base-model", "org/tiny", "--quiet")
    assert call("push", path, "me/sums", *base)[0] == 0
    assert call("push", path, "me/first", "--agent", "generator_0", "--merged", *base)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.yaml").write_text(SMALL)
    maft = "from maft.cli import main; main()"
    elsewhere(maft, "debate", "mine.yaml", "model=me/first", "name=by_name")
    assert [asked for asked in hub.asked if asked.startswith("GET /me/first/resolve/") and "model.safetensors" in asked]

    download, *debate = re.findall(r"```sh\n(.*?)```", hub.files("me/sums")["README.md"].decode(), re.S)[0].splitlines()
    assert download == "hf download me/sums --local-dir society"
    elsewhere("import huggingface_hub; huggingface_hub.snapshot_download('me/sums', local_dir='society')")
    elsewhere(maft, *debate[0].split()[1:], "name=downloaded")
    debates = (tmp_path / "elsewhere/runs/downloaded/iter_01/debates.jsonl").read_text().splitlines()
    assert len(debates) == 2
    config = RunFolder.existing(tmp_path / "elsewhere/runs/downloaded").config
    assert config.model == "org/tiny" and [Path(str(one)).name for one in config.society.critics] == [
        "critic_0",
        "critic_1",
    ]
