"""ModelCard: every model that a name stands for, with the settings that its authors recommend."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from koala.request import RequestError
from koala.specs import KOALA_1B, KOALA_700M, SDXL, SSD_1B, TINY_KOALA_1B, TINY_KOALA_700M, TINY_SDXL, VEGA, UNetSpec

EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model: where it lives, what it is cut from and how it wants to be run."""

    name: str
    title: str
    source: str  # hub id, or the path of a folder
    parameters: int | None  # of the U-Net, exact; None for a folder that nobody has read yet
    licence: str
    spec: UNetSpec | None = None
    unet_file: str | None = None  # "hub id/file" of a U-Net that replaces the source's own
    vae: str | None = None  # hub id of a VAE that replaces the source's own
    teacher: str | None = None
    scheduler: str = "euler-trailing"
    steps: int = 25
    guidance: float = 7.5
    width: int = 1024
    height: int = 1024

    @property
    def embedded(self) -> bool:
        return Path(self.source).parent == EMBEDDED


def _tiny(name: str, title: str, parameters: int, spec: UNetSpec, teacher: str | None = None) -> ModelCard:
    return ModelCard(
        name=name,
        title=title,
        source=str(EMBEDDED / name),
        parameters=parameters,
        licence="Apache-2.0",
        spec=spec,
        teacher=teacher,
        guidance=5.0,
        width=256,
        height=256,
    )


def _koala(name: str, title: str, spec: UNetSpec, parameters: int, **settings) -> ModelCard:
    defaults = dict(
        source=f"etri-vilab/{name}",
        licence="CreativeML Open RAIL++-M, non-commercial",
        vae="madebyollin/sdxl-vae-fp16-fix",
    )
    return ModelCard(name=name, title=title, spec=spec, parameters=parameters, **(defaults | settings))


_LIGHTNING = dict(teacher="sdxl-lightning-4step", steps=10, guidance=3.5)
_OLDER = dict(teacher="sdxl-base", scheduler="euler-leading")
_P_SDXL, _P_1B, _P_700M = 2_567_463_684, 1_161_184_324, 782_822_724
_SDXL = dict(
    source="stabilityai/stable-diffusion-xl-base-1.0",
    spec=SDXL,
    parameters=_P_SDXL,
    licence="CreativeML Open RAIL++-M",
    vae="madebyollin/sdxl-vae-fp16-fix",
)

CARDS = {
    card.name: card
    for card in (
        _tiny("tiny-sdxl", "Tiny SDXL (teacher)", 6_442_948, TINY_SDXL),
        _tiny("tiny-koala-1b", "Tiny KOALA-1B", 2_916_564, TINY_KOALA_1B, "tiny-sdxl"),
        _tiny("tiny-koala-700m", "Tiny KOALA-700M", 1_967_636, TINY_KOALA_700M, "tiny-sdxl"),
        _koala("koala-lightning-700m", "KOALA-Lightning-700M", KOALA_700M, _P_700M, **_LIGHTNING),
        _koala("koala-lightning-1b", "KOALA-Lightning-1B", KOALA_1B, _P_1B, **_LIGHTNING),
        _koala("koala-700m", "KOALA-700M", KOALA_700M, _P_700M, **_OLDER),
        _koala("koala-1b", "KOALA-1B", KOALA_1B, _P_1B, **_OLDER),
        _koala("koala-700m-llava-cap", "KOALA-700M-LLaVA", KOALA_700M, _P_700M, **_OLDER),
        _koala("koala-1b-llava-cap", "KOALA-1B-LLaVA", KOALA_1B, _P_1B, **_OLDER),
        ModelCard(name="sdxl-base", title="SDXL Base 1.0", scheduler="euler-leading", **_SDXL),
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
            spec=SSD_1B,
            parameters=1_331_334_404,
            licence="Apache-2.0",
            vae="madebyollin/sdxl-vae-fp16-fix",
            scheduler="euler-leading",
            guidance=9.0,
        ),
        ModelCard(
            name="segmind-vega",
            title="Segmind-Vega",
            source="segmind/Segmind-Vega",
            spec=VEGA,
            parameters=745_225_604,
            licence="Apache-2.0",
            vae="madebyollin/sdxl-vae-fp16-fix",
            scheduler="euler-leading",
            guidance=9.0,
        ),
    )
}


def _folder_card(folder: Path) -> ModelCard:
    """A card for a folder in diffusers' layout; its U-Net's own config tells the native size."""
    config = folder / "unet" / "config.json"
    try:
        side = 8 * json.loads(config.read_text()).get("sample_size", 128) if config.is_file() else 1024
    except ValueError as error:
        raise RequestError(f"{config} is not readable JSON ({error}); copy the file again") from error
    known = next((c for c in CARDS.values() if c.source == str(folder)), None)
    return known or ModelCard(
        name=str(folder),
        title=folder.name,
        source=str(folder),
        parameters=None,
        licence="see its folder",
        width=side,
        height=side,
    )


def find(model: str) -> ModelCard:
    """The card of a name, a folder in diffusers' layout or a hub id; RequestError with the nearest names."""
    if model in CARDS:
        return CARDS[model]
    if Path(model).is_dir():
        return _folder_card(Path(model).resolve())
    if model.count("/") == 1 and not model.startswith((".", "/")) and not any(c.isspace() for c in model):
        for card in CARDS.values():
            if card.source == model and not card.unet_file:
                return card
        return ModelCard(name=model, title=model, source=model, parameters=None, licence="see its model card")
    near = difflib.get_close_matches(model, CARDS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    shown = model if len(model) <= 80 else model[:77] + "..."
    raise RequestError(
        f"unknown model {shown!r}; {hint}Names are {', '.join(CARDS)}; a folder or a hub id (owner/name) works too"
    )
