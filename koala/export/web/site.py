"""Exports -> a page that draws with them in the browser, for any static host."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import koala
from koala import palette
from koala.errors import UserError
from koala.export.web import packages, parts
from koala.export.web.parts import Files
from koala.files.outputs import new_folder
from koala.models.export_manifest import Exported
from koala.request import MAX_PROMPT, MAX_SEED, MAX_SIDE, MAX_STEPS, MIN_SIDE, SIDE_MULTIPLE
from koala.shapes.captions import EXAMPLES
from koala.words import megabytes

PAGE = Path(__file__).parent / "page"
MANIFEST = "site.json"
RUNTIME = "runtime"  # folder of the site
FIRST, WHOLE = 16_000_000, 45_000_000  # bytes on the way, gzipped: page, runtime and student; all of the site
MAX_MODELS = 4
_REST = 40_000_000  # bytes of the runtime and the page
# Back end -> what it needs of the runtime's package: the module, its glue, and what is compiled.
BACKENDS = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": (
        "ort.webgpu.min.mjs",
        "ort-wasm-simd-threaded.asyncify.mjs",
        "ort-wasm-simd-threaded.asyncify.wasm",
    ),
}
_LICENCES = {"licence": "LICENSE", "notices": "ThirdPartyNotices.txt"}  # as the Python package of the runtime has them


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a visitor downloads, in gzipped bytes."""

    page: int
    runtime: int  # of WebAssembly
    webgpu: int  # of WebGPU, if it is chosen
    models: dict[str, int]  # in loading order; shared files count once

    @property
    def first(self) -> int:
        """Until the first picture: page, runtime and the smallest model."""
        return self.page + self.runtime + next(iter(self.models.values()))

    @property
    def whole(self) -> int:
        """All of the site."""
        return self.page + self.runtime + self.webgpu + sum(self.models.values())

    def line(self) -> str:
        """As text, with a note if a size is above its budget."""

        def mb(size: int, budget: int) -> str:
            return f"{megabytes(size)}" + (f" (above the budget of {megabytes(budget, 0)})" if size > budget else "")

        return f"first load {mb(self.first, FIRST)}, all of it {mb(self.whole, WHOLE)}, gzipped"


def write(exports: Sequence[Path], out: Path, *, runtime: Path | None = None, replace: bool = False) -> Sizes:
    """Write the site of these exports, the teacher's first; whole or not at all.

    `runtime` is the npm package of ONNX Runtime Web as a file, instead of the one that is fetched.
    """
    if not 1 <= len(exports) <= MAX_MODELS:
        raise UserError(f"a page shows 1 to {MAX_MODELS} models, not {len(exports)}")
    package = packages.fetched(packages.RUNTIME, runtime)
    manifests = [Exported.read(folder) for folder in exports]
    names = [one.model for one in manifests]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice} is named twice; name each model once")
    for folder, one in zip(exports, manifests, strict=True):
        one.check(folder)
        if missing := [part for part in parts.PARTS if part not in one.components]:
            raise UserError(f"{folder} has no {missing[0]}; export the whole model with --components all")
    pairs = list(zip(exports, manifests, strict=True))
    needed = sum(
        (folder / name).stat().st_size for folder, f in pairs for c in f.components.values() for name in c.files
    )
    with new_folder(out, needed + _REST, replace=replace) as site:
        return _fill(site, pairs, package)


def _fill(site: Path, exports: list[tuple[Path, Exported]], package: Path) -> Sizes:
    files, known = Files(site=site), {}
    for file in sorted(PAGE.iterdir()):
        shutil.copyfile(file, site / file.name)
    (site / "theme.css").write_text(theme(), encoding="utf-8")
    runtime = _runtime(site, package, files)
    if licence := _own_licence():
        (site / "LICENSE").write_text(licence, encoding="utf-8")
    models = [parts.entry_of(folder, one, files, known) for folder, one in exports]
    page = sorted(f.relative_to(site).as_posix() for f in site.rglob("*") if f.is_file() and f.parent == site)
    page += [name for name in runtime["backends"]["wasm"].values() if name not in files.listed]
    width, height = (max(model["defaults"][side] for model in models) for side in ("width", "height"))
    manifest = {
        "models": models,
        "files": files.listed,
        "runtime": runtime,
        "page": [name for name in page if name != "sw.js"] + [MANIFEST],
        "samplers": parts.SAMPLERS,
        "examples": EXAMPLES,
        "sizes": sizes(max(width, height)),
        "limits": {
            "prompt": MAX_PROMPT,
            "seed": MAX_SEED,
            "steps": MAX_STEPS,
            "guidance": 30,
            "side": [MIN_SIDE, min(MAX_SIDE, 2 * max(width, height))],
            "multiple": SIDE_MULTIPLE,
        },
        "made": {"koala": koala.__version__},
    }
    content = [json.dumps(manifest, sort_keys=True).encode(), *((site / name).read_bytes() for name in page)]
    manifest["version"] = hashlib.sha256(b"".join(content)).hexdigest()[:12]
    (site / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return _sizes(site, manifest, files)


def theme() -> str:
    """The app's colours as a stylesheet: the visitor's system decides on light or dark, or the page's switch."""
    light, dark = palette.variables()
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=light]{{color-scheme:light}}\n:root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
    )


def sizes(side: int) -> list[tuple[int, int]]:
    """Picture sizes around a model's own: smaller ones, which are faster, a landscape and a portrait."""

    def near(share: float) -> int:
        return max(MIN_SIDE, round(side * share / SIDE_MULTIPLE) * SIDE_MULTIPLE)

    half, small, wide = near(0.5), near(0.75), near(1.25)
    return [(half, half), (small, small), (side, side), (wide, small), (small, wide)]


def _runtime(site: Path, package: Path, files: Files) -> dict[str, object]:
    """ONNX Runtime Web with its licence; the WebAssembly is compressed, as the models are."""
    (site / RUNTIME).mkdir()
    contents = packages.members(package, [f"dist/{name}" for names in BACKENDS.values() for name in names])
    backends = {}
    for backend, (script, glue, wasm) in BACKENDS.items():
        for name in (script, glue):
            (site / RUNTIME / name).write_bytes(contents[f"dist/{name}"])
        backends[backend] = {
            "script": f"{RUNTIME}/{script}",
            "glue": f"{RUNTIME}/{glue}",
            "wasm": files.enclose(wasm.removesuffix(".wasm"), contents[f"dist/{wasm}"], ".wasm"),
        }
    for name in _LICENCES.values():
        (site / RUNTIME / name).write_text(_licence_of_runtime(name), encoding="utf-8")
    return {
        "version": packages.RUNTIME.version,
        "backends": backends,
        **{key: f"{RUNTIME}/{name}" for key, name in _LICENCES.items()},
    }


def _licence_of_runtime(name: str) -> str:
    """A text that ONNX Runtime's Python package brings: the npm package of the same project has none."""
    import onnxruntime

    return (Path(onnxruntime.__file__).parent / name).read_text(encoding="utf-8")


def _own_licence() -> str | None:
    """This project's licence, from the repository or from the installed package."""
    file = Path(koala.__file__).parents[1] / "LICENSE"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    return distribution("koala-sdxl").read_text("licenses/LICENSE")


def _sizes(site: Path, manifest: dict, files: Files) -> Sizes:
    def gzipped(names: Sequence[str]) -> int:
        return sum(len(gzip.compress((site / name).read_bytes(), 9)) for name in names)

    brought: set[str] = set()
    models = {}
    for model in sorted(manifest["models"], key=lambda one: one["parameters"]):
        own = {*model["parts"].values(), *model["tokenizers"]} - brought
        brought |= own
        models[model["name"]] = files.sent(own)
    wasm, webgpu = (manifest["runtime"]["backends"][backend] for backend in ("wasm", "webgpu"))
    return Sizes(
        page=gzipped([name for name in manifest["page"] if not name.startswith(RUNTIME)] + ["sw.js"]),
        runtime=gzipped([wasm["script"], wasm["glue"]]) + files.sent({wasm["wasm"]}),
        webgpu=gzipped([webgpu["script"], webgpu["glue"]]) + files.sent({webgpu["wasm"]}),
        models=models,
    )
