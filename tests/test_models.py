"""Model names and adapters: what is refused, and how it is said."""

import json
import struct
from pathlib import Path

import pytest

from maft import models
from maft.errors import DataError

pytestmark = pytest.mark.usefixtures("without_torch")


def write_adapter(folder: Path, *, hidden: int = 8, rank: int = 2, alpha: int = 4, **config: object) -> Path:
    """Write a LoRA adapter of zeros, without torch."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    size = 4 * rank * hidden
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    header = json.dumps(
        {
            f"{name}A.weight": {"dtype": "F32", "shape": [rank, hidden], "data_offsets": [0, size]},
            f"{name}B.weight": {"dtype": "F32", "shape": [hidden, rank], "data_offsets": [size, 2 * size]},
        }
    ).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2 * size))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8}))
    return str(folder)


def test_the_scale_of_an_adapter_is_alpha_over_rank(tmp_path, model):
    layer = "model.layers.0.self_attn.q_proj"
    assert models.check_adapter(write_adapter(tmp_path / "a"), model) == {layer: 2.0}
    rslora = write_adapter(tmp_path / "b", use_rslora=True, rank=4, alpha=8)
    assert models.check_adapter(rslora, model) == {layer: 4.0}


def test_an_adapter_without_its_files_is_refused_by_name(tmp_path, model):
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(DataError, match=r"has no adapter_config\.json"):
        models.check_adapter(folder, model)
    with pytest.raises(DataError, match=r"has no adapter_config\.json"):
        models.check_adapter(tmp_path / "nowhere", model)


def test_an_adapter_of_a_base_with_another_vocabulary_is_refused(tmp_path):
    for name, size in (("ours", 100), ("theirs", 300)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"hidden_size": 8, "vocab_size": size}))
    folder = write_adapter(tmp_path / "a", base_model_name_or_path=str(tmp_path / "theirs"))
    models.check_adapter(folder, str(tmp_path / "theirs"))
    with pytest.raises(DataError, match=r"is for a vocabulary of 300, that of .*theirs; .*ours has 100"):
        models.check_adapter(folder, str(tmp_path / "ours"))


@pytest.mark.parametrize("keep", [0, 4, 30, 300])
def test_a_torn_adapter_is_refused_at_any_length(tmp_path, model, keep):
    folder = write_adapter(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged"):
        models.check_adapter(folder, model)


def test_an_adapter_for_another_name_on_the_hub_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = write_adapter(tmp_path / "a", base_model_name_or_path="org/one")
    models.check_adapter(adapter, "Org/One")
    models.check_adapter(adapter, "/models/one")  # a copy may be anywhere
    with pytest.raises(DataError, match="is for org/one, not for model org/other"):
        models.check_adapter(adapter, "org/other")


def test_a_model_folder_resolves_to_itself_and_a_hub_name_stays(model):
    assert models.resolve(model) == model
    assert models.resolve("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "smolm2", "a/b/c"])
def test_a_model_that_cannot_exist_is_refused_with_what_is_allowed(name):
    with pytest.raises(DataError, match="does not exist. Give a Hugging Face model folder"):
        models.resolve(name)


def test_a_folder_without_a_config_is_not_a_model(tmp_path):
    with pytest.raises(DataError, match=r"without config\.json"):
        models.resolve(str(tmp_path))


class LocalEntryNotFoundError(OSError):
    pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Cannot send a request, as the client has been closed."), "the hub cannot be reached"),
        (LocalEntryNotFoundError("make sure you don't have a local directory"), "make sure"),
        (ValueError("Set trust_remote_code=True"), "engine.trust_remote_code=true"),
    ],
)
def test_what_keeps_a_model_from_being_loaded_is_one_line(error, said):
    with pytest.raises(DataError, match="model org/name cannot be loaded: ") as raised, models.loading("org/name"):
        raise error
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_network_that_is_not_there_is_blamed_for_what_comes_of_it():
    with (
        pytest.raises(DataError, match="the hub cannot be reached, .* Check the network") as raised,
        models.loading("org/name"),
    ):
        try:
            raise ConnectionError("Name or service not known")
        except ConnectionError:
            raise OSError("make sure you don't have a local directory with the same name") from None
    assert "local directory" not in str(raised.value)


def test_a_bug_while_loading_keeps_its_traceback():
    with pytest.raises(RuntimeError), models.loading("org/name"):
        raise RuntimeError("a shape")
