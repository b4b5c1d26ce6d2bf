"""How the worker is started, what is refused before, and that several processes do the same as one."""

import json
import sys
from pathlib import Path

import pytest
from tiny import CRITIC, MIXED, make_job, slow

from maft import config as config_
from maft import engines
from maft.config import EngineConfig, LoraConfig, TrainConfig
from maft.errors import ConfigError, MissingExtra
from maft.trainers import launch
from maft.trainers.sft import SftTrainer


def settings(*overrides: str) -> config_.RunConfig:
    return config_.parse({"task": {"name": "arithmetic"}}, overrides)


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that torch sees a number of GPUs."""

    class Cuda:
        count = 0

        def device_count(self) -> int:
            return self.count

        def is_available(self) -> bool:
            return self.count > 0

    class Torch:
        cuda = Cuda()

    monkeypatch.setitem(sys.modules, "torch", Torch)
    monkeypatch.setattr(launch, "find_spec", lambda name: name not in ("bitsandbytes", "deepspeed") or None)
    return Torch.cuda


# What is refused before anything is loaded


def test_qlora_without_a_gpu_is_refused_with_what_is_there_and_what_to_do(gpus):
    with pytest.raises(ConfigError, match=r"qlora .* this machine has no CUDA GPU\. Use train\.method=lora"):
        engines.make_trainer(settings("train.method=qlora"))


def test_qlora_without_bitsandbytes_names_the_extra(gpus):
    gpus.count = 1
    with pytest.raises(MissingExtra, match=r"\[qlora\]"):
        engines.make_trainer(settings("train.method=qlora"))


@pytest.mark.parametrize("other", ["train.packing=true", "train.method=full", "engine.num_train_processes=2"])
def test_turns_need_a_loop_that_continues_optimisers(gpus, other):
    with pytest.raises(ConfigError, match="train.online_questions continues each agent's optimiser"):
        engines.make_trainer(settings("train.online_questions=4", other))


@pytest.mark.parametrize("sharding", ["fsdp", "deepspeed"])
def test_a_model_can_be_divided_among_gpus_only(gpus, sharding):
    with pytest.raises(ConfigError, match=r"this machine has no CUDA GPU\. Use engine\.train_sharding=none"):
        engines.make_trainer(settings("engine.num_train_processes=2", f"engine.train_sharding={sharding}"))


def test_deepspeed_that_is_not_installed_names_the_extra(gpus):
    gpus.count = 2
    with pytest.raises(MissingExtra, match=r"\[deepspeed\]"):
        engines.make_trainer(settings("engine.num_train_processes=2", "engine.train_sharding=deepspeed"))


def test_more_processes_than_gpus_are_refused(gpus):
    gpus.count = 2
    with pytest.raises(ConfigError, match=r"= 4 asks for a GPU each, and this machine has 2 CUDA GPUs\. Set it to 2"):
        engines.make_trainer(settings("engine.num_train_processes=4"))


def test_several_processes_need_no_gpu(gpus):
    assert isinstance(engines.make_trainer(settings("engine.num_train_processes=2")), SftTrainer)


# The command, its environment and its configs


def test_one_process_is_started_without_a_launcher(tmp_path):
    command = launch.command(EngineConfig(), tmp_path / "jobs.json")
    assert command == [*launch.WORKER, str(tmp_path / "jobs.json")]
    assert list(tmp_path.iterdir()) == []


def test_one_process_sees_one_gpu_and_several_see_all(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.environment(EngineConfig())["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in launch.environment(EngineConfig(num_train_processes=2))


def test_threads_are_shared_among_processes():
    assert launch.environment(EngineConfig(num_threads=3))["OMP_NUM_THREADS"] == "3"
    assert launch.environment(EngineConfig(num_threads=8, num_train_processes=4))["OMP_NUM_THREADS"] == "2"
    assert launch.environment(EngineConfig(num_threads=1, num_train_processes=4))["OMP_NUM_THREADS"] == "1"


def parsed(tmp_path: Path, **engine):
    """Return what `accelerate launch` makes of our command."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    command = launch.command(EngineConfig(**engine), tmp_path / "jobs.json")
    assert command[:4] == [sys.executable, "-P", "-m", "accelerate.commands.launch"]
    arguments = launch_command_parser().parse_args(command[4:])
    return _validate_launch_command(arguments)[0]


@slow
def test_accelerate_reads_the_config_of_several_processes(tmp_path):
    from accelerate.utils.launch import prepare_multi_gpu_env

    told = parsed(tmp_path, num_train_processes=3, dtype="float32")
    assert told.multi_gpu and not told.use_fsdp and not told.use_deepspeed
    assert told.module and told.training_script == "maft.trainers.sft_worker"
    assert prepare_multi_gpu_env(told)["ACCELERATE_MIXED_PRECISION"] == "no"
    assert told.nproc_per_node == "3" and int(told.master_port) > 0


@slow
def test_accelerate_makes_fsdp2_of_the_config(tmp_path, monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    told = parsed(tmp_path, num_train_processes=8, train_sharding="fsdp")
    assert told.use_fsdp and not told.multi_gpu
    environment = prepare_multi_gpu_env(told)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    for name, value in environment.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and plugin.cpu_ram_efficient_loading
    assert plugin.state_dict_type.name == "FULL_STATE_DICT" and not plugin.activation_checkpointing


@slow
def test_accelerate_reads_the_config_for_deepspeed(tmp_path):
    told = parsed(tmp_path, num_train_processes=8, train_sharding="deepspeed")
    assert told.use_deepspeed and told.zero3_init_flag
    assert json.loads(Path(told.deepspeed_config_file).read_text())["zero_optimization"]["stage"] == 3


@slow
def test_deepspeed_reads_its_config_as_transformers_fills_it_in(tmp_path):
    runtime = pytest.importorskip("deepspeed.runtime.config")
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
    from trl import SFTConfig

    filled = HfTrainerDeepSpeedConfig(dict(launch.DEEPSPEED))
    arguments = SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=4, bf16=True, use_cpu=True
    )
    filled.trainer_config_process(arguments)
    told = runtime.DeepSpeedConfig(filled.config | {"train_batch_size": 8})
    assert told.zero_config.stage == 3 and told.bfloat16_config.enabled
    assert (told.train_micro_batch_size_per_gpu, told.gradient_accumulation_steps) == (2, 4)


# Several processes do the same as one

SETTINGS = TrainConfig(
    num_epochs=2, batch_size=4, learning_rate=5e-2, lr_schedule="constant", max_length=200, lora=LoraConfig(rank=4)
)


def trained(home: Path, tiny: str, num_processes: int, how: TrainConfig):
    """Train two agents in the given number of processes, one being this one; return losses, weights and progress."""
    from safetensors.torch import load_file

    from maft.trainers import sft_worker

    jobs = [make_job(home, "generator_0", MIXED, tiny), make_job(home, "critic_0", [CRITIC] * 3, tiny)]
    seen = []
    if num_processes == 1:
        sft_worker.Work("float32").train(jobs, how, seen.append)
    else:
        engine = EngineConfig(dtype="float32", num_train_processes=num_processes, num_threads=num_processes)
        SftTrainer(engine).train(jobs, how, seen.append)
    summaries = [json.loads((job.output / "training.json").read_text()) for job in jobs]
    assert {summary["num_processes"] for summary in summaries} == {num_processes}
    weights = [load_file(next(job.output.glob("*model.safetensors"))) for job in jobs]
    return [loss for summary in summaries for loss in summary["losses"]], weights, seen


@slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "full", "learning_rate": 1e-3}, {"packing": True, "batch_size": 2, "gradient_checkpointing": True}],
    ids=["lora", "full", "packed"],
)
def test_two_processes_with_half_a_batch_each_do_what_one_does(tiny, tmp_path, changes):
    import torch

    how = SETTINGS.model_copy(update=changes)
    one, weights_of_one, seen_by_one = trained(tmp_path / "one", tiny, 1, how)
    two, weights_of_two, seen_by_two = trained(tmp_path / "two", tiny, 2, how)
    assert two == pytest.approx(one, rel=1e-5)
    for a, b in zip(seen_by_one, seen_by_two, strict=True):
        assert (a.agent, a.step, a.num_steps) == (b.agent, b.step, b.num_steps)
        if "packing" not in changes:  # packed rows are counted by TRL, which leaves some of an epoch's last batch out
            assert a.tokens == b.tokens
    for a, b in zip(weights_of_one, weights_of_two, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@slow
def test_what_is_wrong_in_several_processes_is_said_in_one_line(tiny, tmp_path):
    from maft.errors import DataError

    job = make_job(tmp_path, "generator_0", MIXED, str(tmp_path / "gone"))
    with pytest.raises(DataError, match="does not exist"):
        SftTrainer(EngineConfig(num_train_processes=2)).train([job], SETTINGS, lambda _: None)
