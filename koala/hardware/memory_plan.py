"""Memory plans: how one model, or several together, fit a device; each choice with its reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from koala.errors import UserError
from koala.presets import PRESETS
from koala.request import SIDE_MULTIPLE
from koala.unet.costs import LATENT_FACTOR, parameters
from koala.unet.parts import Parts, parts_of
from koala.unet.specs import UNetSpec
from koala.words import gigabytes

GB = 10**9
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
CONTEXT = {"cuda": GB // 2, "cpu": 0, "mps": 0}  # bytes that the driver takes and no allocator reports
PROCESS = {"cuda": 0, "cpu": GB * 6 // 10, "mps": 0}  # of the interpreter and its libraries, where they count as peak
WAITING = {"cuda": 0, "cpu": 1, "mps": 2}  # extra copies of the weights that a LoRA changes: before and after
SPARE = 0.1  # of the memory: what a display takes, and what an allocator loses between blocks
COPY_RATE = 8 * GB  # bytes per second from pageable memory over PCIe 4 x16, as measured with model offload (5 to 11)

# Live tensors with fused attention, counted in diffusers' own forward passes: elements for each
UNET_ELEMENTS = 15  # position and channel of DW-1, per sample (KOALA-700M 14.3, SDXL 15.9)
VAE_ELEMENTS = 3  # pixel and channel of the decoder's second last resolution (1.5 GiB at 1024 px in 16 bit)
TINY_VAE_ELEMENTS = 195  # pixel (0.38 GiB)
TINY_VAE_PARAMETERS = 2_445_063  # taesdxl
WORKSPACE = 1.25  # workspace of convolutions: an A100's peak less weights, over the live tensors
TILES = (64, 32)  # latents per side; below 32 the decoder's normalisation sees too little of the picture

# Where text encoders and U-Net are, from the fastest to the smallest.
PLACEMENTS = (
    ("resident", "resident"),
    ("released", "resident"),
    ("released", "exchanged"),
    ("released", "swapped"),
)
_TEXT = {
    "resident": "they stay on the device",
    "released": "on the device for a new prompt only; its embeddings are kept",
}
_UNET = {
    "resident": "stays on the device",
    "exchanged": "off the device while a new prompt is encoded, and while another model runs",
    "swapped": "nothing else is on the device meanwhile, not even the VAE",
}
_LORA = "the originals wait in host memory, and so do the changed ones, for the next run: twice as much"
_LORA_HERE = "the originals wait for the run's end, the changed ones for the next run"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One decision of a plan, in words."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to load and run. `on_device` says what may be on the device in each stage; `choices` says why."""

    dtype: str  # of U-Net and text encoders
    vae_dtype: str
    vae_tile: int | None  # latents per tile side; None decodes the picture whole
    tiny_vae: bool
    text: str  # resident, released
    unet: str  # resident, exchanged, swapped
    predicted_peak_bytes: int  # as StageTimer measures it: of the allocator on a GPU, of the process on a CPU
    live_peak_bytes: int  # of that, weights and tensors alone, without the workspace of convolutions
    budget_bytes: int | None  # None: no limit was set
    swap_ms: float  # copying parts to the device for a new prompt, predicted; never part of a model's own time
    choices: tuple[Choice, ...] = ()

    def on_device(self, stage: str) -> tuple[str, ...]:
        """Which of "text", "unet" and "vae" are on the device in the stage of that name."""
        return _on_device(self.text, self.unet, stage)


def _on_device(text: str, unet: str, stage: str) -> tuple[str, ...]:
    if unet == "swapped" or (unet == "exchanged" and stage == "text"):
        return (stage,)
    return ("unet", "vae") if text == "released" and stage != "text" else ("text", "unet", "vae")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What to plan for: U-Nets that run one after the other on the same prompt and size."""

    specs: tuple[UNetSpec, ...]
    parts: Parts
    device: str
    memory: int | None
    width: int
    height: int
    images: int
    guided: bool
    preset: str
    dtype: str | None
    dtype_asked: bool
    vae_fp16_safe: bool
    tiny_vae: bool
    lora: int  # bytes of the weights that LoRAs change

    @property
    def budget(self) -> int | None:
        return None if self.memory is None else max(int(self.memory * (1 - SPARE)) - CONTEXT[self.device], 0)

    @property
    def latents(self) -> tuple[int, int]:
        return self.width // LATENT_FACTOR, self.height // LATENT_FACTOR

    def dtypes(self) -> tuple[str, ...]:
        if self.dtype:
            return (self.dtype,)
        return ("float32", "bfloat16") if self.device == "cpu" else ("float16",)

    def vae_dtype(self, dtype: str) -> str:
        return "float32" if dtype == "float16" and not (self.vae_fp16_safe or self.tiny_vae) else dtype

    def candidates(self) -> Iterator[tuple[str, str, str, int | None]]:
        """(dtype, text, unet, tile) in the order in which the preset makes concessions."""
        tiles = () if self.tiny_vae else tuple(t for t in TILES if t < max(self.latents))
        # On a CPU and in unified memory, moving a part off the device frees nothing.
        placements = PLACEMENTS if self.device == "cuda" else PLACEMENTS[:1]
        smallest = [(*placements[-1], t) for t in tiles[-1:]]
        if PRESETS[self.preset].frugal:
            order = [(*placements[-1], t) for t in tiles or (None,)]
        elif self.preset == "quality":  # time before pixels
            order = [(*p, t) for t, p in product((None, *tiles), placements)]
        else:  # pixels before time, but the smallest tiles last
            order = [(*p, t) for p, t in product(placements, (None, *tiles[:1]))] + smallest
        for dtype, (text, unet, tile) in product(self.dtypes(), order):
            yield dtype, text, unet, tile

    def weights(self, dtype: str) -> dict[str, list[int]]:
        """Bytes of each part; one entry per U-Net."""
        vae = TINY_VAE_PARAMETERS if self.tiny_vae else self.parts.vae.parameters
        return {
            "text": [self.parts.text_cost[0] * BYTES[dtype]],
            "unet": [parameters(s) * BYTES[dtype] for s in self.specs],
            "vae": [vae * BYTES[self.vae_dtype(dtype)]],
        }

    def activations(self, dtype: str, tile: int | None, workspace: float = WORKSPACE) -> dict[str, int]:
        """Working memory of each stage in bytes; with a `workspace` of 1 that of its tensors alone."""
        positions = self.latents[0] * self.latents[1]
        samples = self.images * (2 if self.guided else 1)
        decoded = min(tile or positions, self.latents[0]) * min(tile or positions, self.latents[1]) * LATENT_FACTOR**2
        per_pixel = TINY_VAE_ELEMENTS if self.tiny_vae else VAE_ELEMENTS * self.parts.vae.channels[1]
        unet = UNET_ELEMENTS * samples * positions * max(s.channels[0] for s in self.specs)
        return {
            "text": 0,
            "unet": int(workspace * unet * BYTES[dtype]),
            "vae": int(workspace * per_pixel * decoded * BYTES[self.vae_dtype(dtype)]),
        }

    def peak(self, dtype: str, text: str, unet: str, tile: int | None, workspace: float = WORKSPACE) -> int:
        """Bytes at the busiest moment; with a `workspace` of 1 those of weights and tensors alone."""
        weights, activations = self.weights(dtype), self.activations(dtype, tile, workspace)

        def together(stage: str) -> int:
            at_once = {p: max(w) if p == "unet" and unet != "resident" else sum(w) for p, w in weights.items()}
            return sum(at_once[p] for p in _on_device(text, unet, stage)) + activations[stage]

        return PROCESS[self.device] + WAITING[self.device] * self.lora + max(map(together, weights))

    def plan(self, dtype: str, text: str, unet: str, tile: int | None) -> Plan:
        weights = {part: sum(sizes) for part, sizes in self.weights(dtype).items()}
        copied = weights["text"] if text == "released" else 0
        copied += weights["unet"] if unet != "resident" else 0
        copied += weights["vae"] * len(self.specs) if unet == "swapped" else 0
        return Plan(
            dtype=dtype,
            vae_dtype=self.vae_dtype(dtype),
            vae_tile=tile,
            tiny_vae=self.tiny_vae,
            text=text,
            unet=unet,
            predicted_peak_bytes=self.peak(dtype, text, unet, tile),
            live_peak_bytes=self.peak(dtype, text, unet, tile, workspace=1.0),
            budget_bytes=self.budget,
            swap_ms=1000 * copied / COPY_RATE,
            choices=tuple(self.reasons(dtype, text, unet, tile)),
        )

    def reasons(self, dtype: str, text: str, unet: str, tile: int | None) -> Iterator[Choice]:
        """The plan in words."""

        def short(*instead: str | int | None) -> str:
            return f"otherwise {gigabytes(self.peak(*instead))} would be needed, and {gigabytes(self.budget)} are free"

        frugal = PRESETS[self.preset].frugal
        why_small = f"the preset {self.preset} takes the smallest memory"
        if self.dtype_asked:
            reason = "as was asked for"
        elif self.device != "cpu":
            reason = "half the memory of float32, and what GPUs compute fastest"
        elif dtype == "float32":
            reason = "CPUs are slower in half precision, and it rounds more"
        else:
            single = "float32", text, unet, tile
            tight = self.budget is not None and self.peak(*single) > self.budget
            reason = short(*single) if tight else "so it was loaded, for what was to be drawn then"
        yield Choice(what="precision", value=dtype, reason=reason)
        vae = self.vae_dtype(dtype)
        overflow = (
            "this VAE overflows in float16; diffusers does the same" if vae != dtype else "the same as the U-Net's"
        )
        yield Choice(what="VAE precision", value=vae, reason=overflow)
        if self.tiny_vae:
            reason = f"the preset {self.preset} decodes with the small VAE: about 18 times less work, less detail"
            yield Choice(what="decoder", value="small, whole picture", reason=reason)
        elif tile is None:
            reason = "as the stock pipeline decodes"
            if PRESETS[self.preset].tiny_decoder:
                reason = "no small VAE of this model is here: python -m koala fetch MODEL --tiny-vae brings it"
            yield Choice(what="decoder", value="whole picture", reason=reason)
        else:
            reason = why_small if frugal else short(dtype, text, unet, None)
            seams = "; about 1.3 times the VAE's time, faint seams are possible"
            yield Choice(what="decoder", value=f"tiles of {tile * LATENT_FACTOR} px", reason=reason + seams)
        if self.lora:
            what = f"{gigabytes(self.lora)} of weights changed"
            yield Choice(what="LoRA", value=what, reason=_LORA if self.device == "cuda" else _LORA_HERE)
        at = PLACEMENTS.index((text, unet))
        reason = "" if at == 0 else f"; {why_small if frugal else short(dtype, *PLACEMENTS[at - 1], tile)}"
        yield Choice(what="text encoders", value=text, reason=_TEXT[text] + (reason if unet == "resident" else ""))
        yield Choice(what="U-Net", value=unet, reason=_UNET[unet] + (reason if unet != "resident" else ""))

    def best(self) -> Plan | None:
        """The first candidate that fits."""
        fitting = (c for c in self.candidates() if self.budget is None or self.peak(*c) <= self.budget)
        plan = next(fitting, None)
        return self.plan(*plan) if plan else None

    def fitting(self) -> Plan:
        """The best plan; UserError with what would fit instead."""
        if plan := self.best():
            return plan
        least = min(self.peak(*c) for c in self.candidates())
        names = " and ".join(s.name for s in self.specs)
        asked = f"{names} at {self.width}x{self.height} px" + (f", {self.images} pictures at once" * (self.images > 1))
        card = -(-int((least + CONTEXT[self.device]) / (1 - SPARE)) // GB)
        remedy = f"it needs {card} GB of memory or a smaller model, such as koala-lightning-700m"
        for share in (1, 0.75, 0.5):
            width, height = (int(side * share) // SIDE_MULTIPLE * SIDE_MULTIPLE for side in (self.width, self.height))
            if smaller := replace(self, width=width, height=height, images=1).best():
                peak = gigabytes(smaller.predicted_peak_bytes)
                remedy = f"this fits with {peak}: --width {width} --height {height} --images 1"
                break
        raise UserError(
            f"{asked} takes {gigabytes(least)} at the least, and of {gigabytes(self.memory)} "
            f"{gigabytes(self.budget)} are free for it; {remedy}"
        )


def plan(spec: UNetSpec, **job) -> Plan:
    """The best plan for one model; see `pair_plan` for the arguments."""
    return pair_plan([spec], **job)


def pair_plan(
    specs: Sequence[UNetSpec],
    *,
    device: str,
    vram_bytes: int | None,
    width: int,
    height: int,
    images: int = 1,
    guided: bool = True,
    preset: str = "quality",
    dtype: str | None = None,
    dtype_asked: bool = False,
    vae_fp16_safe: bool = True,
    tiny_vae: bool = False,
    parts: Parts | None = None,
    lora: int = 0,
) -> Plan:
    """The best plan for U-Nets that draw the same prompt one after the other, the text encoded once.

    `device` is cuda, cpu or mps; `vram_bytes` its memory, None for no limit; `dtype` the precision of weights that are
    loaded already, and `dtype_asked` whether somebody asked for it; `tiny_vae` whether the model has a small
    decoder, which only some presets use; `lora` the bytes of the weights that LoRAs change. Raises UserError with
    what would fit when nothing does.
    """
    return _Job(
        specs=tuple(specs),
        parts=parts or parts_of(specs[0]),
        device=device,
        memory=vram_bytes,
        width=width,
        height=height,
        images=images,
        guided=guided,
        preset=preset,
        dtype=dtype,
        dtype_asked=dtype_asked,
        vae_fp16_safe=vae_fp16_safe,
        tiny_vae=tiny_vae and PRESETS[preset].tiny_decoder,
        lora=lora,
    ).fitting()
