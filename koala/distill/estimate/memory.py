"""What a distillation holds in memory: throughout, at times, and in total at each busy moment."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from koala.distill.config import DistillConfig
from koala.distill.estimate.activations import feature_elements, flowing_bytes, recomputed_bytes, saved_bytes, widths
from koala.distill.estimate.lora import between, lora_parameters, running
from koala.distill.estimate.passes import passes_of
from koala.distill.loss.pairs import feature_pairs
from koala.hardware.memory_plan import CONTEXT, GB, PROCESS, SPARE, UNET_ELEMENTS, VAE_ELEMENTS, WORKSPACE
from koala.unet.costs import Block, blocks, parameters
from koala.unet.parts import parts_of
from koala.unet.specs import UNetSpec

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_STATES = {
    "adamw": {"first moment": 4.0, "second moment": 4.0},
    "adamw8bit": {"first moment": 1 + 4 / 256, "second moment": 1 + 4 / 256},  # one scale per block of 256
    "muon": {"velocity": 4.0},
}  # bytes per weight
_LIBRARIES = {"cuda": 0, "cpu": GB * 3 // 10, "mps": 0}  # data sets, accelerate, optimizer, in addition to PROCESS
_MUON_WORK = 18  # bytes per weight of the largest group of matrices of one shape, while it is orthogonalised
_LARGEST_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class RunMemory:
    """A run on `world` devices of so much memory each; everything is in bytes, of the main process."""

    config: DistillConfig
    student: UNetSpec
    teacher: UNetSpec
    resolution: int
    device: str
    memory: int | None
    world: int
    sharded: bool
    slack: float = WORKSPACE  # what a GPU's allocator takes for each byte that lives in it

    @property
    def side(self) -> dict[str, int]:
        """Width and height of the pictures in px, as keyword arguments."""
        return {"width": self.resolution, "height": self.resolution}

    @property
    def passes(self) -> int:
        """How many passes a process splits one step into."""
        return self.config.accumulation

    @property
    def pictures_per_pass(self) -> int:
        """On one device, rounded up."""
        return -(-self.config.batch_size // (self.world * self.passes))

    @property
    def budget(self) -> int | None:
        """What a run may use of the memory, less a spare share and the device's context; None where none is known."""
        return None if self.memory is None else max(int(self.memory * (1 - SPARE)) - CONTEXT[self.device], 0)

    @cached_property
    def weights(self) -> int:
        """How many parameters the student has, not bytes."""
        return parameters(self.student)

    @cached_property
    def learning(self) -> int:
        """How many numbers learn: all parameters of the student, or those of its LoRA."""
        rank = self.config.lora_rank
        return lora_parameters(self.student, rank) if rank else self.weights

    def split(self, count: float) -> int:
        """Of what every process has whole, or a share of where it is sharded."""
        return int(count / (self.world if self.sharded else 1))

    @cached_property
    def ema(self) -> int:
        """Bytes of the moving average, in fp32."""
        return self.split(4 * self.learning) if self.config.ema_decay else 0

    @property
    def drawing(self) -> dict[str, int]:
        """What draws the validation's pictures: the teacher's text encoders and VAE, a student; in its precision."""
        parts, each = parts_of(self.teacher), _BYTES[self.config.teacher_precision]
        student = {} if self.config.lora_rank else {"student that is validated": self.weights * each}
        return {"text encoders": parts.text_cost[0] * each, "VAE": parts.vae.parameters * each} | student

    @cached_property
    def always(self) -> dict[str, int]:
        """On the device for the whole run, and what the process itself takes."""
        config, each = self.config, _BYTES[self.config.teacher_precision]
        process = PROCESS[self.device] + _LIBRARIES[self.device]
        parts = {"process": process} if process else {}
        parts["teacher"] = parameters(self.teacher) * each  # with a LoRA the student too
        parts["LoRA, fp32" if config.lora_rank else "student, fp32"] = self.split(4 * self.learning)
        for name, size in _STATES[config.optimizer].items():
            parts[f"optimizer: {name}"] = self.split(size * self.learning)
        if not self.on_host:
            parts["moving average"] = self.ema
        if self.device == "cpu":
            parts |= self.drawing
        if self.world > 1 and not self.sharded:
            parts["gradients in transit"] = 4 * self.learning  # DistributedDataParallel's buckets
        return parts

    @property
    def on_host(self) -> bool:
        """Whether the moving average is in host memory while training runs on a GPU."""
        return self.device != "cpu" and self.config.ema_device == "cpu"

    @cached_property
    def host(self) -> dict[str, int]:
        """Bytes in host memory where training runs on a GPU, by part."""
        if self.device == "cpu":
            return {}
        return ({"moving average": self.ema} if self.on_host and self.ema else {}) | self.drawing

    @cached_property
    def gradients(self) -> int:
        """Of what learns, in fp32."""
        return self.split(4 * self.learning)

    @cached_property
    def copies(self) -> int:
        """Weights in the precision of the passes: all of them under autocast, of a few modules when sharded."""
        each = _BYTES[self.config.precision]
        if self.config.lora_rank and self.config.gradient_checkpointing:
            return 0  # a layer's factors are cast where it is called; the rest has the precision of the passes
        if self.sharded:
            units = [size for b in blocks(self.student, **self.side) for size in _units(b)]
            return each * (2 * max(units) + sum(b.parameters for b in blocks(self.student, **self.side) if _root(b)))
        return each * self.learning if each < 4 else 0

    def saved(self, checkpointing: bool) -> int:
        """Of one picture."""
        w = widths(self.config.precision, self.device)
        kept = 0 if checkpointing else w.value * sum(self._between.values())
        return saved_bytes(self.student, **self.side, w=w, checkpointing=checkpointing) + kept

    @cached_property
    def _between(self) -> dict[str, int]:
        """Block -> elements of one picture between the factors of its LoRA; empty without one."""
        rank = self.config.lora_rank
        return between(self.student, rank, **self.side) if rank else {}

    @cached_property
    def _running(self) -> int:
        """Of one picture: what a LoRA's layer works in where checkpointing keeps nothing of it."""
        rank, w = self.config.lora_rank, widths(self.config.precision, self.device)
        if not rank or not self.config.gradient_checkpointing:
            return 0
        return w.value * running(self.student, rank, **self.side)

    @cached_property
    def recomputed(self) -> int:
        """Of one picture: the largest block that checkpointing computes again in the backward pass."""
        if not self.config.gradient_checkpointing:
            return 0
        w, depths = (
            widths(self.config.precision, self.device),
            {b.path: b.depth for b in blocks(self.student, **self.side)},
        )
        kept = max((count // max(depths[path], 1) for path, count in self._between.items()), default=0)
        return recomputed_bytes(self.student, **self.side, w=w) + w.value * kept

    @cached_property
    def _flowing(self) -> int:
        """Of one picture: gradients within the block that is computed again, while all others' inputs are there."""
        if not self.config.gradient_checkpointing:
            return 0
        w = widths(self.config.precision, self.device)
        return flowing_bytes(self.student, **self.side, w=w, lora=bool(self.config.lora_rank))

    @cached_property
    def features(self) -> tuple[int, int]:
        """Of one picture: both networks' outputs, and the fp32 differences that the loss keeps for its gradient."""
        config = self.config
        if not config.feature_weight:
            return 0, 0
        pairs = feature_pairs(config, self.student, self.teacher)
        count = sum(feature_elements(self.student, pairs, **self.side))
        return count * (_BYTES[config.precision] + _BYTES[config.teacher_precision]), 4 * count

    @cached_property
    def teaching(self) -> int:
        """Of one picture: live tensors of a pass without gradients, two pictures' where the teacher is guided."""
        live = UNET_ELEMENTS * (self.resolution // 8) ** 2 * self.teacher.channels[0]
        pictures = passes_of(self.config).guided
        return int(live * pictures * _BYTES[self.config.teacher_precision] * self.workspace)

    @property
    def workspace(self) -> float:
        """What an allocator takes for each byte that lives in it."""
        return self.slack if self.device == "cuda" else 1.0

    @cached_property
    def updating(self) -> int:
        """What the optimizer works in: its largest group of matrices, GEGLU's."""
        if self.config.optimizer != "muon":
            return 0
        wide = max(self.student.channels)
        count = sum(b.depth for b in blocks(self.student, **self.side) if b.channels == wide)
        return int(_MUON_WORK * 8 * wide**2 * count)

    def at_times(self, pictures: int) -> dict[str, int]:
        """On the device within a step, by part, with so many pictures per pass."""
        saved = self.saved(self.config.gradient_checkpointing) + self.recomputed
        return {
            "gradients": self.gradients,
            "weights cast for a pass": self.copies,
            "activations": int(saved * pictures * self.workspace),
            "features": sum(self.features) * pictures,
            "teacher's pass": self.teaching * pictures,
        }

    def moments(self, pictures: int) -> dict[str, int]:
        """Bytes on the device at each busy moment with so many pictures per pass."""
        always, work = sum(self.always.values()), self.workspace
        outputs, differences = self.features
        saved = self.saved(self.config.gradient_checkpointing) * work
        before = self.gradients if self.passes > 1 else 0  # of the passes before this one
        kept = 0 if self.config.gradient_checkpointing else self.copies  # for the backward pass, once autocast ends
        student = before + self.copies + (saved + outputs / 2 + self._running * work) * pictures
        teacher = before + kept + (saved + outputs + max(self.teaching, differences)) * pictures
        again = self.recomputed * work
        if self.config.method != "koala":  # the goal is there before the student's activations
            teacher = before + self.teaching * pictures
        again += self._running * work  # a LoRA's layer works in as much on the way back
        first = before + kept + (saved + again + self._flowing * work + outputs / 2 + differences) * pictures
        last = self.gradients + (again + outputs / 2) * pictures
        return {
            "passes of student and teacher": int(always + max(student, teacher)),
            "backward pass": int(always + max(first, last)),
            "optimizer's step": int(always + self.gradients + self.updating + outputs / 2 * pictures),  # see step.py
            "validation": int(always + self.decoding + self._set_aside),
            "encoding before it": self.encoding,
        }

    @property
    def _set_aside(self) -> int:
        """A LoRA's factors, while their moving average is validated in their place."""
        return 4 * self.learning if self.config.lora_rank else 0

    @property
    def decoding(self) -> int:
        """Drawing one picture, once the gradients are gone."""
        parts, each = parts_of(self.teacher), _BYTES[self.config.teacher_precision]
        live = VAE_ELEMENTS * parts.vae.channels[1] * self.resolution**2 * each
        moved = 0 if self.device == "cpu" else sum(self.drawing.values())
        return int(live * self.workspace) + moved

    @property
    def encoding(self) -> int:
        """Text encoders and VAE alone, in fp32 on a CPU and fp16 on a GPU, and what the VAE works in."""
        parts, each = parts_of(self.teacher), 4 if self.device == "cpu" else 2
        live = VAE_ELEMENTS * parts.vae.channels[1] * self.resolution**2 * each
        return PROCESS[self.device] + (parts.text_cost[0] + parts.vae.parameters) * each + int(live * self.workspace)

    def peak(self, pictures: int) -> int:
        """Bytes at the busiest moment, with so many pictures per pass."""
        return max(self.moments(pictures).values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget; true where none is known."""
        return self.budget is None or self.peak(self.pictures_per_pass) <= self.budget

    def batch_that_fits(self) -> int | None:
        """The most pictures per pass; memory grows with them, so halving the range finds it."""
        if self.budget is None:
            return None
        low, high = 0, _LARGEST_BATCH
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.peak(middle) <= self.budget else (low, middle - 1)
        return low

    def remedies(self) -> tuple[str, ...]:
        """The settings with which it fits, the cheapest first; empty where it fits or nothing helps."""
        if self.fits:
            return ()
        settings: dict[str, object] = {}
        for setting in self._ways_out():
            settings |= setting
            smaller = replace(self, config=replace(self.config, **settings))
            if (split := smaller._split()) is not None:
                settings |= split
                return tuple(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in settings.items())
        return ()

    def _ways_out(self) -> Iterator[dict[str, object]]:
        config = self.config
        yield {}
        if config.ema_decay and not self.on_host and self.device != "cpu":
            yield {"ema_device": "cpu"}
        if not config.gradient_checkpointing:
            yield {"gradient_checkpointing": True}
        if config.optimizer == "adamw" and self.device == "cuda" and not self.sharded:
            yield {"optimizer": "adamw8bit"}
        if config.precision == "fp32":
            yield {"precision": "bf16"}
        if config.teacher_precision == "fp32":
            yield {"teacher_precision": "bf16"}

    def _split(self) -> dict[str, object] | None:
        """How many passes make it fit: {} if as many as now, None if none does."""
        if self.fits:
            return {}
        for passes in range(self.passes + 1, self.config.batch_size // self.world + 1):
            if self.config.batch_size % (passes * self.world) == 0:
                config = replace(self.config, accumulation=passes)
                if replace(self, config=config).fits:
                    return {"accumulation": passes}
        return None


def _root(block: Block) -> bool:
    """What FSDP leaves in its outermost unit."""
    return block.kind not in ("resnet", "attention")


def _units(block: Block) -> list[int]:
    """Parameters of what FSDP gathers at once: a residual block, or about one transformer block."""
    return [] if _root(block) else [block.parameters // max(block.depth, 1)]
