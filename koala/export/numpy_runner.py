"""Text to picture from an exported folder with only numpy, ONNX Runtime and a tokenizer: read it, and port it.

    python koala/export/numpy_runner.py DIR "a red circle" --seed 0 --out picture.png

It imports nothing of this project, no torch and no diffusers. B is the batch: with guidance 2, otherwise 1.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: it reports models to its makers

import numpy as np
import onnxruntime
from PIL import Image, PngImagePlugin
from tokenizers import Tokenizer

TYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int64)": np.int64}
LATENT_FACTOR = 8  # px per latent
TOKENS = 77  # that CLIP reads
DEFAULTS = {"scheduler": str, "steps": int, "guidance": (int, float), "width": int, "height": int}  # in export.json
ANCESTRAL = "euler-ancestral-trailing"
SPACINGS = {
    "euler-trailing": "trailing",
    ANCESTRAL: "trailing",
    "euler-leading": "leading",
    "euler-linspace": "linspace",
}
OURS = "draw with python -m koala generate --model DIR instead"
# Settings of a scheduler that would change the noise levels; none may be set.
OTHERS = ("trained_betas", "rescale_betas_zero_snr", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class Graph:
    """An ONNX file; floating inputs are cast to what it declares, so that fp16, fp32 and int8 files run alike."""

    def __init__(self, file: Path):
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def __call__(self, **given: np.ndarray) -> dict[str, np.ndarray]:
        cast = {i.name: np.asarray(given[i.name], TYPES[i.type]) for i in self.session.get_inputs()}
        names = [o.name for o in self.session.get_outputs()]
        return {name: value.astype(np.float32) for name, value in zip(names, self.session.run(None, cast), strict=True)}


class Settings(dict):
    """The object in a JSON file; a key that it lacks ends the program in one line."""

    def __init__(self, file: Path):
        try:
            super().__init__(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise SystemExit(f"{file} cannot be read ({error}); export the model again") from error
        self.file = file

    def __missing__(self, name: str):
        raise SystemExit(f"{self.file} has no {name}; export the model again")


def tokenize(folder: Path, text: str) -> np.ndarray:
    """Token ids (1, 77): start, text, end, then padding; longer text is cut before the end token."""
    settings = Settings(folder / "tokenizer_config.json")

    def token(name: str) -> str:  # some files have the word alone, some a table that holds it
        entry = settings[name]
        return entry["content"] if isinstance(entry, dict) else entry

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    start, end, pad = (tokenizer.token_to_id(token(n)) for n in ("bos_token", "eos_token", "pad_token"))
    ids = [start, *tokenizer.encode(text, add_special_tokens=False).ids[: TOKENS - 2], end]
    return np.array([ids + [pad] * (TOKENS - len(ids))])


def encode(folder: Path, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The words (1, 77, C), last layer but one of each encoder side by side; the second's pooled text (1, P)."""
    words, pooled = [], None
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        outputs = Graph(folder / encoder / "model.onnx")(input_ids=tokenize(folder / tokenizer, text))
        states = [name for name in outputs if name.startswith("hidden_states.")]
        words.append(outputs[f"hidden_states.{len(states) - 2}"])
        pooled = outputs.get("text_embeds")
    return np.concatenate(words, axis=2), pooled


def euler(folder: Path, steps: int, scheduler: str) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps (steps) and noise levels (steps + 1) of Euler's method, the noisiest first."""
    c = Settings(folder / "scheduler" / "scheduler_config.json")
    if unknown := [name for name in OTHERS if c.get(name)]:
        raise SystemExit(f"{c.file} says {unknown[0]} {c[unknown[0]]!r}, which this runner does not support; {OURS}")
    if (known := (c["beta_schedule"], c.get("prediction_type", "epsilon"))) != ("scaled_linear", "epsilon"):
        raise SystemExit(f"{c.file} says {known[0]}, {known[1]}; this runner knows scaled_linear, epsilon; {OURS}")
    count = c.get("num_train_timesteps", 1000)
    betas = np.linspace(c["beta_start"] ** 0.5, c["beta_end"] ** 0.5, count, dtype=np.float32) ** 2
    signal = np.cumprod(1 - betas)
    own = "leading" if str(c.get("_class_name")).startswith(("DDIM", "DDPM", "PNDM")) else "linspace"  # if none is said
    offset = c.get("steps_offset", 0) if c.get("timestep_spacing", own) == "leading" else 1
    timesteps = {
        "trailing": np.round(np.arange(count, 0, -count / steps)) - 1,
        "leading": np.arange(steps)[::-1] * (count // steps) + offset,
        "linspace": np.linspace(0, count - 1, steps)[::-1],
    }[SPACINGS[scheduler]]
    sigmas = np.interp(timesteps, np.arange(count), ((1 - signal) / signal) ** 0.5)
    return timesteps.astype(np.float32), np.append(sigmas, 0).astype(np.float32)


def ancestral(high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps between noise levels, the ancestral way: the level that each goes down to, the fresh noise it adds."""
    return low**2 / high, low * np.sqrt(1 - (low / high) ** 2)


def unscaled(folder: Path, latents: np.ndarray) -> np.ndarray:
    """The U-Net's latents (1, 4, h, w) in the VAE's scale, by channel where its config says how."""
    c = Settings(folder / "vae_decoder" / "config.json")
    if c.get("latents_mean") is None or c.get("latents_std") is None:
        return latents / c["scaling_factor"]
    mean, std = (np.array(c[name], np.float32).reshape(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
    return latents * std / c["scaling_factor"] + mean


def draw(
    folder: Path, prompt: str, negative_prompt: str, noise: np.ndarray, steps: int, guidance: float, scheduler: str
) -> Image.Image:
    """One picture from unit noise: (1, 4, h, w) by Euler, (1 + steps, 4, h, w) by ancestral steps."""
    words, pooled = encode(folder, prompt)
    height, width = (LATENT_FACTOR * side for side in noise.shape[2:])
    sizes = np.array([[height, width, 0, 0, height, width]], np.float32)  # original size, crop, size
    guided = guidance > 1
    if guided:  # without a negative prompt SDXL is guided away from zeros, not from the empty text
        zeros = not negative_prompt and Settings(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
        away = (np.zeros_like(words), np.zeros_like(pooled)) if zeros else encode(folder, negative_prompt)
        words, pooled = np.concatenate([away[0], words]), np.concatenate([away[1], pooled])
        sizes = np.repeat(sizes, 2, axis=0)

    unet = Graph(folder / "unet" / "model.onnx")
    timesteps, sigmas = euler(folder, steps, scheduler)
    start, *stirring = noise.astype(np.float32)
    lower, fresh = ancestral(sigmas[:-1], sigmas[1:]) if stirring else (sigmas[1:], None)
    # The noisiest of leading timesteps are not all noise: there its level is that of noise and a picture together.
    latents = start[None] * (np.sqrt(sigmas[0] ** 2 + 1) if scheduler == "euler-leading" else sigmas[0])
    for k, timestep in enumerate(timesteps):
        sample = np.repeat(latents / np.sqrt(sigmas[k] ** 2 + 1), len(words), axis=0)
        predicted = unet(
            sample=sample, timestep=timestep, encoder_hidden_states=words, text_embeds=pooled, time_ids=sizes
        )["out_sample"]
        if guided:
            without, with_text = predicted
            predicted = (without + guidance * (with_text - without))[None]
        latents = latents + predicted * (lower[k] - sigmas[k])
        if stirring:
            latents = latents + fresh[k] * stirring[k]
        print(f"step {k + 1} of {steps}", file=sys.stderr)

    pixels = Graph(folder / "vae_decoder" / "model.onnx")(latent_sample=unscaled(folder, latents))["sample"][0]
    pixels = np.clip(pixels / 2 + 0.5, 0, 1).transpose(1, 2, 0)
    return Image.fromarray(np.round(255 * pixels).astype(np.uint8))


def arguments() -> argparse.Namespace:
    """What to draw, from which folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="written by python -m koala export --model M --out DIR"
    )
    parser.add_argument("prompt")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--steps", type=int, help="default: the model's own, as those below")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--width", type=int)
    parser.add_argument("--height", type=int)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--seed", type=int, default=0, help="of numpy's noise: other pictures than torch's seeds draw")
    start.add_argument("--noise", type=Path, metavar="FILE.npy", help="noise as draw() takes it, not a seed's")
    parser.add_argument("--out", type=Path, default=Path("picture.png"), metavar="FILE.png")
    options = parser.parse_args()
    if not (options.folder / "export.json").is_file():
        parser.error(f"{options.folder} is not an export: it has no export.json")
    if not (options.folder / "vae_decoder" / "model.onnx").is_file():
        parser.error(f"{options.folder} is a U-Net alone; export the whole model with --components all")
    file = options.folder / "export.json"
    for name, value in Settings(file)["defaults"].items():
        if name not in DEFAULTS or not isinstance(value, DEFAULTS[name]):
            parser.error(f"{file} has the default {name}: {value!r}, which is unknown here; export the model again")
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    if missing := [name for name in DEFAULTS if getattr(options, name, None) is None]:
        parser.error(f"{file} has no default {missing[0]}; export the model again")
    if options.scheduler not in SPACINGS:
        parser.error(f"{file} asks for {options.scheduler!r}; this runner knows {', '.join(SPACINGS)}; {OURS}")
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    if options.width % LATENT_FACTOR or options.height % LATENT_FACTOR:
        parser.error(f"width and height must be multiples of {LATENT_FACTOR} px")
    return options


def main() -> None:
    """Draw the picture, save it with its prompt, and print its path."""
    options = arguments()
    count = 1 + options.steps if options.scheduler == ANCESTRAL else 1
    if options.noise:
        noise = np.load(options.noise)
        if noise.ndim != 4 or noise.shape[1] != 4 or len(noise) not in (1, 1 + options.steps):
            sys.exit(
                f"{options.noise} holds {noise.shape}; write (1, 4, h, w), or ({1 + options.steps}, ...) for ancestral"
            )
    else:
        shape = (count, 4, options.height // LATENT_FACTOR, options.width // LATENT_FACTOR)
        noise = np.random.default_rng(options.seed).standard_normal(shape)
    picture = draw(
        options.folder,
        options.prompt,
        options.negative_prompt,
        noise,
        options.steps,
        options.guidance,
        options.scheduler,
    )
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", f"{options.prompt}\nSteps: {options.steps}, CFG scale: {options.guidance:g}")
    picture.save(options.out, pnginfo=info)
    print(options.out)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # damage that no check above covers
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}; export the model again")
