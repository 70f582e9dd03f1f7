"""ModelCard, and the table of every model that has a name, with the settings that its authors recommend."""

from dataclasses import dataclass
from pathlib import Path

from koala.unet.costs import parameters
from koala.unet.parts import SDXL_PARTS
from koala.unet.specs import (
    KOALA_1B,
    KOALA_700M,
    SDXL,
    SSD_1B,
    TINY_KOALA_1B,
    TINY_KOALA_700M,
    TINY_SDXL,
    VEGA,
    UNetSpec,
)

EMBEDDED = Path(__file__).parents[1] / "embedded"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model: where its files are, what it was cut from, and the settings recommended for it."""

    name: str
    title: str
    source: str  # hub id, or the path of a folder
    parameters: int | None  # of the U-Net, exact; None for a model whose files have not been read
    licence: str
    spec: UNetSpec | None = None
    aliases: tuple[str, ...] = ()
    revision: str | None = None  # branch, tag or commit of the source; None for its main branch
    unet_file: str | None = None  # "hub id/file" of a U-Net that replaces the source's own
    vae: str | None = None  # hub id of a VAE that replaces the source's own
    tiny_vae: str | None = None  # hub id of a tiny VAE on the same latents, for previews and small memories
    teacher: str | None = None
    runtime: str = "torch"  # or "onnx", of a folder that `python -m koala export` wrote
    single_file: bool = False  # the source is one safetensors file, not a folder
    negative_prompt: str = ""  # the authors' recommendation; a suggestion, never added silently
    scheduler: str = "euler-trailing"
    noising: str = "ddpm"  # or "straight": how pictures faded into noise while it learned (koala.sampling.noising)
    steps: int = 25
    guidance: float = 7.5
    width: int = 1024
    height: int = 1024

    @property
    def embedded(self) -> bool:
        """Whether the weights come with this repository."""
        return Path(self.source).parent == EMBEDDED

    @property
    def draws_unguided(self) -> bool:
        """Whether it draws well without guidance: it or its teacher was distilled to do so."""
        teacher = CARDS.get(self.teacher)
        return self.guidance <= 1 or (teacher is not None and teacher.guidance <= 1)

    @property
    def on_hub(self) -> bool:
        """Whether the source is a hub id; otherwise it is a folder of this machine."""
        return not Path(self.source).is_absolute()

    @property
    def download_bytes(self) -> int | None:
        """Approximate size of a first download: U-Net and text encoders in fp16, the VAE of KOALA's authors in fp32."""
        if not self.on_hub or self.parameters is None:
            return None
        text_encoders, _ = SDXL_PARTS.text_cost
        return 2 * (self.parameters + text_encoders) + 4 * SDXL_PARTS.vae.parameters


def _unet(spec: UNetSpec) -> dict[str, object]:
    """What a card says of its U-Net."""
    return {"spec": spec, "parameters": parameters(spec)}


def _tiny(name: str, title: str, spec: UNetSpec, **settings) -> ModelCard:
    defaults = dict(
        source=str(EMBEDDED / name),
        licence="Apache-2.0",
        scheduler="euler-ancestral-trailing",
        noising="straight",
        guidance=2.0,
        width=256,
        height=256,
        **_unet(spec),
    )
    return ModelCard(name=name, title=title, **(defaults | settings))


_DECODERS = dict(vae="madebyollin/sdxl-vae-fp16-fix", tiny_vae="madebyollin/taesdxl")


def _koala(name: str, title: str, spec: UNetSpec, **settings) -> ModelCard:
    defaults = dict(
        source=f"etri-vilab/{name}",
        licence="CreativeML Open RAIL++-M, non-commercial",
        negative_prompt="worst quality, low quality, illustration, low resolution",
        **_DECODERS,
        **_unet(spec),
    )
    return ModelCard(name=name, title=title, **(defaults | settings))


_FEW_STEPS = dict(scheduler="euler-trailing", steps=4, guidance=0.0)
_LIGHTNING = dict(teacher="sdxl-lightning-4step", steps=10, guidance=3.5)
_OLDER = dict(teacher="sdxl-base", scheduler="euler-leading")
_SDXL = dict(
    source="stabilityai/stable-diffusion-xl-base-1.0",
    licence="CreativeML Open RAIL++-M",
    **_DECODERS,
    **_unet(SDXL),
)

CARDS = {
    card.name: card
    for card in (
        _tiny("tiny-sdxl", "Tiny SDXL (teacher)", TINY_SDXL),
        _tiny("tiny-koala-1b", "Tiny KOALA-1B", TINY_KOALA_1B, teacher="tiny-sdxl"),
        _tiny("tiny-koala-700m", "Tiny KOALA-700M", TINY_KOALA_700M, teacher="tiny-sdxl"),
        _tiny("tiny-lightning", "Tiny Lightning (few-step teacher)", TINY_SDXL, **_FEW_STEPS),
        *(
            _tiny(
                f"tiny-koala-lightning-{size}",
                f"Tiny KOALA-Lightning-{size.upper()}",
                spec,
                teacher="tiny-lightning",
                **_FEW_STEPS,
            )
            for size, spec in (("1b", TINY_KOALA_1B), ("700m", TINY_KOALA_700M))
        ),
        _koala("koala-lightning-700m", "KOALA-Lightning-700M", KOALA_700M, **_LIGHTNING),
        _koala("koala-lightning-1b", "KOALA-Lightning-1B", KOALA_1B, **_LIGHTNING),
        _koala("koala-700m", "KOALA-700M", KOALA_700M, **_OLDER),
        _koala("koala-1b", "KOALA-1B", KOALA_1B, **_OLDER),
        _koala("koala-700m-llava-cap", "KOALA-700M-LLaVA", KOALA_700M, **_OLDER),
        _koala("koala-1b-llava-cap", "KOALA-1B-LLaVA", KOALA_1B, **_OLDER),
        ModelCard(name="sdxl-base", title="SDXL Base 1.0", aliases=("sdxl",), scheduler="euler-leading", **_SDXL),
        ModelCard(
            **_SDXL
            | dict(
                name="sdxl-turbo",
                title="SDXL-Turbo",
                source="stabilityai/sdxl-turbo",
                licence="Stability AI non-commercial",
                steps=4,
                guidance=0.0,
                width=512,
                height=512,
            )
        ),
        *(
            ModelCard(
                name=f"sdxl-lightning-{n}step",
                title=f"SDXL-Lightning, {n} steps",
                aliases=("sdxl-lightning",) if n == 4 else (),
                unet_file=f"ByteDance/SDXL-Lightning/sdxl_lightning_{n}step_unet.safetensors",
                steps=n,
                guidance=0.0,
                **_SDXL,
            )
            for n in (2, 4, 8)
        ),
        ModelCard(
            name="ssd-1b",
            title="SSD-1B",
            source="segmind/SSD-1B",
            licence="Apache-2.0",
            scheduler="euler-leading",
            guidance=9.0,
            **_DECODERS,
            **_unet(SSD_1B),
        ),
        ModelCard(
            name="segmind-vega",
            title="Segmind-Vega",
            aliases=("vega",),
            source="segmind/Segmind-Vega",
            licence="Apache-2.0",
            scheduler="euler-leading",
            guidance=9.0,
            **_DECODERS,
            **_unet(VEGA),
        ),
    )
}
