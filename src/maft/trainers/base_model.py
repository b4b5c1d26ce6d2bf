"""The weights that a finetuning starts from: loaded, made trainable by a method, and saved as an agent."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maft import models
from maft.config import EngineConfig, Training
from maft.errors import DataError
from maft.models import memory, shapes
from maft.models.shapes import BYTES
from maft.samplers.chat import Chat
from maft.trainers.base import TrainJob

NF4 = 0.52
"""Bytes of a number in 4 bits, with its share of the doubly quantised scales."""
ADVICE = (
    "Use a smaller model, train.method=lora or qlora in place of full, or several GPUs with "
    "engine.num_train_processes and engine.train_sharding; `maft plan` tells what a run needs."
)


def num_processes() -> int:
    """Return how many processes train together: what `accelerate launch` has said, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Say whether this process is the one that writes and reports."""
    return os.environ.get("RANK", "0") == "0"


def sharded() -> bool:
    """Say whether each process holds only a part of the weights."""
    return "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED"))


class BaseModel:
    """The weights that jobs start from, and their tokenizer. An adapter leaves them as they were loaded."""

    def __init__(self, name: str, dtype: str, method: str = "lora", engine: EngineConfig | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        engine = engine or EngineConfig()
        self.name, self.method, self.trust = name, method, engine.trust_remote_code
        self.on_cpu = not torch.accelerator.is_available()
        self.dtype = dtype
        self.knows: dict[str, bool] = {}
        """What trainers have found out about this model."""
        self.likelihoods: dict[bool, tuple[float, ...]] = {}
        """What it gives to the text of the probe, by whether it was computed in float32."""
        self.pristine = True
        """Whether the weights are as they were loaded; after full finetuning they are not."""
        folder = models.resolve(name)
        self._refuse_what_does_not_fit(folder)
        loaded_in = torch.float32 if method == "full" else getattr(torch, self.dtype)
        code = {"trust_remote_code": self.trust}
        more = {"quantization_config": four_bits(self.dtype), "device_map": _here()} if method == "qlora" else {}
        chat = Chat(folder, trust=self.trust, today=engine.date)
        self.template, self.tokenizer = chat.template, chat.tokenizer
        with models.loading(name):
            self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=loaded_in, **code, **more)
        self._configs = copy.deepcopy((self.model.config, self.model.generation_config))

    def to_device(self) -> None:
        """Move the model to the accelerator, where there is one; a quantised model is there already."""
        import torch

        if not self.on_cpu and self.method != "qlora":
            self.model.to(torch.accelerator.current_accelerator())

    def trainable(self, job: TrainJob, training: Training) -> Any:
        """Return the model with what is trained: an adapter, gone on from or drawn by the job's seed, or all of it."""
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import set_seed

        set_seed(job.seed % 2**32)  # what numpy accepts
        if job.init_adapter is not None:
            models.check_adapter(job.init_adapter, models.resolve(self.name), trust=self.trust)
        if self.method == "full":
            self.pristine = False
            if job.init_adapter is not None:
                self.model = PeftModel.from_pretrained(self.model, job.init_adapter).merge_and_unload()
                self.model.requires_grad_(True)  # PEFT has frozen what it was put on
            return self.model
        # ZeRO-3 gathers weights of one dtype at a time; elsewhere adapters are trained and kept in float32.
        in_float32 = os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true" or self.method == "qlora"
        if job.init_adapter is not None:
            return PeftModel.from_pretrained(
                self.model, job.init_adapter, is_trainable=True, autocast_adapter_dtype=in_float32
            )
        lora = training.lora
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        shape = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
        try:
            return get_peft_model(self.model, shape, autocast_adapter_dtype=in_float32)
        except ValueError as error:  # such as target modules that this model does not have
            raise DataError(f"train.lora does not fit model {self.name}: {str(error).splitlines()[0]}") from None

    def restore(self, trained: Any) -> None:
        """Take the adapter out of the base model, which is then as it was loaded."""
        if self.method != "full":
            self.model = trained.unload()
        self.model.__dict__.pop("forward", None)  # where TRL puts its own language-model head
        self.model.__dict__.pop("peft_config", None)

    def save(self, trained: Any, folder: Path, state: dict[str, Any] | None = None) -> None:
        """Save an adapter in PEFT's format, or a whole model in the base's dtype; equal weights give equal bytes.

        `state` has the weights where several processes hold a part each.
        """
        if self.method == "full":
            self._save_whole(trained, folder, state)
            return
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(trained, state_dict=state, save_embedding_layers=False)
        save_adapter(trained.peft_config["default"], weights, folder)

    def _save_whole(self, trained: Any, folder: Path, state: dict[str, Any] | None) -> None:
        import torch

        dtype = getattr(torch, self.dtype)
        trained.__dict__.pop("forward", None)
        # Training has set what is no part of the model, such as the padding token.
        trained.config, trained.generation_config = copy.deepcopy(self._configs)
        if state is None:
            trained.to(dtype).save_pretrained(folder)
        else:
            trained.save_pretrained(folder, state_dict={name: tensor.to(dtype) for name, tensor in state.items()})
        self.tokenizer.save_pretrained(folder)

    def _refuse_what_does_not_fit(self, folder: str) -> None:
        """Say before loading that weights and optimiser alone need too much memory, where the size is known."""
        shape = shapes.of_model(folder)
        if shape is None or sharded():
            return
        if self.method == "full":
            weights = float(shape.weight_bytes("float32"))
            parts = {"of weights": weights, "of gradients": weights, "of the optimiser": 2 * weights}
        else:
            saved = shape.linear_parameters * (BYTES[self.dtype] - NF4) if self.method == "qlora" else 0
            parts = {"of weights": shape.weight_bytes(self.dtype) - saved}
        memory.check(self.name, parts, *_room(), ADVICE)


def save_adapter(config: Any, weights: Mapping[str, Any], folder: Path) -> None:
    """Write an adapter in PEFT's format; equal weights give equal bytes."""
    from safetensors.torch import save_file

    config = copy.copy(config)
    config.inference_mode = True
    config.save_pretrained(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(written["target_modules"], list):
        written["target_modules"].sort()  # PEFT holds them in a set
    file.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def four_bits(dtype: str) -> Any:
    """Return the quantisation of QLoRA: NF4, doubly quantised; stored in a dtype that FSDP can divide."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_quant_storage=getattr(torch, dtype) if sharded() else torch.uint8,
    )


def _here() -> dict[str, Any] | None:
    """Return where a quantised model is loaded to: this process's GPU; a divided one is placed by who divides it."""
    import torch

    if sharded():
        return None
    return {"": f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"}


def _room() -> tuple[float, str]:
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))[0]), "the GPU"
    # Processes on one CPU share its memory.
    return memory.free_ram() / num_processes(), "main memory" if num_processes() == 1 else "a process's main memory"
