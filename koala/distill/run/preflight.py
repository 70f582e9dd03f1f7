"""What is checked and set before a run begins: what cannot work on these devices, and FSDP's precision."""

import time
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy

from koala.distill.config import DistillConfig
from koala.distill.data.samples import HUB
from koala.distill.data.sources import source_for
from koala.errors import UserError
from koala.models.registry import find

_LONGEST_LOOK = 20.0  # s, for a description of the data


def check(config: DistillConfig, accelerator: Accelerator) -> None:
    """UserError for what cannot run on these devices, before hours of encoding."""
    for tracker in config.trackers:
        if find_spec(tracker) is None:  # accelerate would go on without it
            raise UserError(f"trackers={tracker} needs {tracker}, which is not installed: pip install {tracker}")
    check_share(config, accelerator.num_processes)
    if config.optimizer == "adamw8bit" and accelerator.device.type != "cuda":
        raise UserError("optimizer=adamw8bit needs a CUDA GPU; choose optimizer=adamw in a new run")
    if accelerator.distributed_type == DistributedType.FSDP:
        if config.lora_rank:
            raise UserError(
                "lora_rank does not work with FSDP, which something as small as a LoRA does not need; use DDP: "
                "recipes/full_scale/ddp-8.json"
            )
        if config.optimizer != "adamw":
            raise UserError(f"optimizer={config.optimizer} needs whole matrices, which FSDP cuts up; choose adamw")
        if config.target == "ema":
            raise UserError("target=ema does not work with FSDP, which shards that average; choose target=student")
        if config.ema_device == "cpu":
            raise UserError("ema_device=cpu does not work with FSDP, which shards it anyway; choose ema_device=student")


def check_share(config: DistillConfig, processes: int) -> None:
    """UserError where a batch cannot be shared evenly; the remedy keeps the batch, as a resumed run must."""
    if not config.batch_size % (processes * config.accumulation):
        return
    if config.batch_size % processes:
        fit = [str(n) for n in range(1, processes) if not config.batch_size % (n * config.accumulation)]
        remedy = f"start {' or '.join(fit[-3:]) or 1} processes, or for a new run choose batch_size="
        remedy += str(-(-config.batch_size // (processes * config.accumulation)) * processes * config.accumulation)
    else:
        each = config.batch_size // processes
        remedy = "choose accumulation=" + str(max(n for n in range(1, config.accumulation) if not each % n))
    raise UserError(
        f"batch_size {config.batch_size} cannot be split over {processes} processes of {config.accumulation} passes "
        f"each; {remedy}"
    )


def describe_data(config: DistillConfig) -> str:
    """What the run would learn from and what it would leave out, in a sentence; nothing for shapes and hub data sets.

    Data that cannot be used is described by its error. A long look is cut short, so that the caller need not wait.
    """
    if config.data == "shapes" or config.data.startswith(HUB):
        return ""
    until = time.monotonic() + _LONGEST_LOOK

    def between() -> None:
        if time.monotonic() > until:
            raise TimeoutError

    try:
        return source_for(config, config.resolution or find(config.teacher).width, between).about
    except TimeoutError:
        return f"{config.data}: there is a lot to look through; the run reports what it finds"
    except UserError as error:
        return f"the data cannot be used here: {error}"


def keep_exact(accelerator: Accelerator) -> None:
    """FSDP's own half precision would add up gradients in it, and round sizes like 1333 px before they are embedded."""
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    accelerator.state.fsdp_plugin.mixed_precision_policy = policy
