"""Adapters: what every engine applies alike is used, everything else is refused by name before a model is loaded."""

import json
import math
import random
import shutil
from pathlib import Path

import adapters as make_
import pytest

from maft import models
from maft.errors import DataError
from maft.models import adapters, probe

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """Return a function that gives a copy of a kind of adapter."""
    home = tmp_path_factory.mktemp("adapters")
    kinds = {"plain": {}, **make_.PATTERNS, **make_.REFUSED}

    def copy(kind: str, target: Path) -> Path:
        source = home / kind.replace(" ", "_")
        if not source.exists():
            make_.make(source, tiny, **kinds[kind])
        return Path(shutil.copytree(source, target / source.name))

    return copy


@pytest.mark.parametrize(
    ("kind", "scales"),
    [
        ("plain", {2.0}),
        ("rslora", {4.0}),
        ("rank_pattern", {4.0, 2.0}),
        ("alpha_pattern", {2.0, 8.0}),
        ("both_rslora", {8 / 8**0.5, 1 / 2, 4.0}),
        ("some_layers", {2.0}),
    ],
)
def test_the_scales_are_those_of_peft(made, tiny, tmp_path, kind, scales):
    assert sorted(set(models.check_adapter(made(kind, tmp_path), tiny).values())) == pytest.approx(sorted(scales))


@pytest.mark.parametrize("kind", ["rank_pattern", "alpha_pattern", "both", "both_rslora"])
def test_an_adapter_with_patterns_does_the_same_with_one_rank_and_one_scale(made, tiny, tmp_path, monkeypatch, kind):
    from safetensors.torch import load_file

    monkeypatch.setenv("MAFT_CACHE", str(tmp_path / "cache"))
    folder = made(kind, tmp_path)
    scales = models.check_adapter(folder, tiny)
    same, scale = adapters.uniform(folder, scales)
    assert (scale, adapters.has_patterns(folder), adapters.has_patterns(same)) == (1.0, True, False)
    assert set(models.check_adapter(same, tiny).values()) == {1.0}
    one, other = load_file(folder / adapters.WEIGHTS), load_file(same / adapters.WEIGHTS)
    for layer, scale in scales.items():
        a, b = (f"base_model.model.{layer}.lora_{side}.weight" for side in "AB")
        assert (one[b] @ one[a] * scale - other[b] @ other[a]).abs().max() < 1e-6


@pytest.mark.parametrize("kind", make_.REFUSED)
def test_a_setting_that_some_engine_applies_wrongly_is_refused_by_name(made, tiny, tmp_path, kind):
    with pytest.raises(DataError, match=f"has {kind.split()[0]} = "):
        models.check_adapter(made(kind, tmp_path), tiny)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 3}, "has r = 3 for .*, and tensors of rank 4"),
        ({"r": None}, "has r = None"),
        ({"r": 0}, "has r = 0"),
        ({"lora_alpha": None}, "has lora_alpha = None"),
        ({"peft_type": "IA3"}, 'has peft_type = "IA3"'),
        ({"rank_pattern": {"(": 2}}, "is no regular expression"),
        ({"a_setting_of_tomorrow": 1}, "has a_setting_of_tomorrow = 1"),
        ({"target_modules": ["q_proj", "v_proj"]}, "down_proj.* it has shape .*, and PEFT expects none"),
        ({"target_modules": ["q_proj", "v_proj", "down_proj", "o_proj"]}, "o_proj.* it has shape none"),
        ({"base_model_name_or_path": "org/other"}, None),
    ],
)
def test_settings_that_the_tensors_contradict_are_refused(made, tiny, tmp_path, changes, message):
    folder = make_.settings(made("plain", tmp_path), **changes)
    if message is None:
        models.check_adapter(folder, tiny)
    else:
        with pytest.raises(DataError, match=message):
            models.check_adapter(folder, tiny)


@pytest.mark.parametrize("name", ["r", "lora_alpha", "peft_type"])
def test_a_missing_setting_is_refused(made, tiny, tmp_path, name):
    folder = made("plain", tmp_path)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != name}))
    with pytest.raises(DataError, match=f"has {name} = "):
        models.check_adapter(folder, tiny)


@pytest.mark.parametrize("content", ["[]", "null", "{", "[" * 5000])
def test_a_config_that_is_no_object_is_refused(made, tiny, tmp_path, content):
    folder = made("plain", tmp_path)
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(DataError, match=r"is damaged: adapter_config\.json"):
        models.check_adapter(folder, tiny)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_model.model.model.", "base_model.model.wrapper.model.", "does not fit model"),
        ("base_model.model.", "", "not matrices named"),
        (".weight", ".default.weight", "not matrices named"),
        ("layers.1.", "layers.7.", "does not fit model"),
        ("v_proj.lora_B", "v_proj.other_B", "not matrices named"),
    ],
)
def test_names_that_are_no_layers_of_the_model_are_refused(made, tiny, tmp_path, old, new, message):
    folder = make_.rename(made("plain", tmp_path), old, new)
    with pytest.raises(DataError, match=message):
        models.check_adapter(folder, tiny)


def test_lora_a_alone_is_refused(made, tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = made("plain", tmp_path)
    file = folder / adapters.WEIGHTS
    save_file({name: tensor for name, tensor in load_file(file).items() if "lora_A" in name}, file)
    with pytest.raises(DataError, match="lacks lora_A or lora_B of"):
        models.check_adapter(folder, tiny)


def test_a_pickle_is_refused_with_how_to_convert_it(made, tiny, tmp_path):
    folder = made("plain", tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(DataError, match="a pickle, which is not read. Load it with PEFT and save it again"):
        models.check_adapter(folder, tiny)


def test_only_an_adapter_that_maft_trained_can_be_trained_again(made, tiny, tmp_path):
    folder = make_.settings(made("plain", tmp_path), use_dora=True)
    with pytest.raises(DataError) as theirs:
        models.check_adapter(folder, tiny)
    (folder / "training.json").write_text("{}")
    with pytest.raises(DataError) as ours:
        models.check_adapter(folder, tiny)
    assert "trained again" in str(ours.value) and "trained again" not in str(theirs.value)


def test_the_name_of_a_model_changes_with_weights_and_config(tiny, tmp_path):
    names = []
    for number in range(3):
        folder = Path(shutil.copytree(tiny, tmp_path / str(number) / "model"))
        if number == 1:
            with (folder / "model.safetensors").open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"\x01")
        if number == 2:
            make_json = folder / "config.json"
            make_json.write_text(make_json.read_text().replace("10000.0", "20000.0"))
            assert "20000.0" in make_json.read_text()
        names.append(models.content_name(str(folder)))
    assert (
        len(set(names)) == 3 and models.content_name(str(shutil.copytree(tiny, tmp_path / "4" / "model"))) == names[0]
    )


def test_an_adapter_on_fused_experts_is_refused_with_what_to_do(made, tiny, tmp_path):
    folder = make_.settings(made("plain", tmp_path), target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(DataError, match=r"has target_parameters = .*, or merge this one into its base with PEFT"):
        adapters.check_adapter(folder, tiny)


def probed(changes, rounding=0.0, seed=0, exact=True):
    """Return the probe of an engine whose adapter changes likelihoods so, each of which is rounded."""
    rng = random.Random(f"rounding {seed}")
    base = [-2 + rng.gauss(0, rounding) for _ in changes]
    adapted = [-2 + change + rng.gauss(0, rounding) for change in changes]
    return probe.Probe(base=tuple(base), adapted=tuple(adapted), exact=exact)


def drawn(seed, size, number=250):
    rng = random.Random(seed)
    return [rng.gauss(0, size) for _ in range(number)]


@pytest.mark.parametrize("effect", [0.06, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("exact", [True, False])
def test_the_probe_tells_a_weak_adapter_from_an_ignored_one_in_bfloat16(effect, exact):
    own, another = drawn(1, effect), drawn(2, effect)
    mixed = [0.6 * x + 0.8 * y for x, y in zip(own, another, strict=True)]
    rounding = 0.0 if effect == 3.0 else 0.04
    for seed in range(20):
        expected = probed(own, 0 if exact else rounding, seed + 100, exact)
        probe.check(Path("a"), expected, probed(own, rounding, seed))
        for wrong in ([0.0] * 250, [x / 2 for x in own], [-x for x in own], another, mixed, [math.nan] * 250):
            if exact or effect > 0.1:
                with pytest.raises(DataError, match="does not work here as it does in PEFT"):
                    probe.check(Path("a"), expected, probed(wrong, rounding, seed))


def test_rounding_that_only_the_adapter_shows_is_no_other_adapter():
    """A trainer and an engine on one GPU round the base alike, and the adapter each in its own way."""
    own = drawn(1, 0.09)
    expected = probed(own, exact=False)
    rounded = [change + noise for change, noise in zip(own, drawn("rounding", 0.06), strict=True)]
    probe.check(Path("a"), expected, probed(rounded))
    with pytest.raises(DataError, match="does not work here"):
        probe.check(Path("a"), expected, probed([0.0] * 250))


def test_an_effect_below_rounding_on_both_sides_refuses_nothing(caplog):
    """Seen on a GPU in bfloat16: such an adapter was called another one, and mixed batches were given up."""
    own = drawn(1, 0.02)
    for seed in range(50):
        probe.check(Path("a"), probed(own, 0.04, seed + 100, exact=False), probed(own, 0.04, seed))
    assert len(caplog.records) == 50 and "too small beside rounding" in caplog.text


def test_an_adapter_that_the_probe_cannot_tell_is_warned_of(caplog):
    for effect, num_warnings in ((0.0, 0), (0.005, 1)):
        caplog.clear()
        probe.check(Path("a"), probed(drawn(1, effect)), probed(drawn(1, effect), 0.04))
        assert len(caplog.records) == num_warnings
    assert "too small beside rounding" in caplog.text
    probe.check(Path("a"), probed(drawn(1, 0.005)), probed(drawn(1, 0.005), 0.0002))
    assert len(caplog.records) == 1


@pytest.mark.slow
def test_what_peft_gives_is_computed_once_in_a_process_of_its_own(made, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MAFT_CACHE", str(tmp_path / "cache"))
    from transformers import AutoTokenizer

    folder = made("plain", tmp_path)
    num_tokens = len(probe.token_ids(AutoTokenizer.from_pretrained(tiny)))
    first = probe.expected(folder, tiny, "tiny", num_tokens)
    assert first is not None and first.base != first.adapted and len(first.base) == num_tokens - 1
    monkeypatch.setattr(probe.subprocess, "run", None)
    assert probe.expected(folder, tiny, "tiny", num_tokens) == first
    (folder / "training.json").write_text(json.dumps({"probe": {"base": [-1], "adapted": [-2]}}))
    assert probe.expected(folder, tiny, "tiny", num_tokens) == first, "the text of another version"
    assert probe.expected(folder, tiny, "tiny", 2) == probe.Probe(base=(-1,), adapted=(-2,))
