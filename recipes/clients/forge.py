"""What Forge's own code makes of our single files. Runs in Forge's environment, without koala:

    python recipes/clients/forge.py --source FORGE --guess GUESS --files work/clients \
        --out docs/measurements/clients-forge.json

FORGE is a clone of stable-diffusion-webui-forge, GUESS one of huggingface_guess, which it detects models with.
`recipes.clients.files` writes the files. Nothing of Forge is copied. Its U-Net is compared with diffusers' on a small
one of KOALA-700M's depths: with the middle block that our files have, and once without it, to show what it is for.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from common import against, arguments, sha256, shapes_only, stand_in, write

PACKAGES = ("torchvision", "gradio", "modules", "modules_forge", "k_diffusion", "bitsandbytes", "sentencepiece")
NAMES = ("sdxl", "koala-700m", "koala-1b")
SMALL, HEAD = "small", 32  # channels of one of its heads
PREFIX = "model.diffusion_model."


@torch.inference_mode()
def main() -> None:
    """Detection, the U-Net's names and shapes, and its numbers."""
    guess = Path(sys.argv.pop(sys.argv.index("--guess") + 1))
    sys.argv.remove("--guess")
    args = arguments(__doc__)
    stood_in = stand_in(*PACKAGES)
    sys.argv += ["--always-cpu", "--attention-pytorch"]
    sys.path[:0] = [str(args.source), str(args.source / "packages_3rdparty"), str(guess)]
    import huggingface_guess
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from huggingface_guess.detection import detect_unet_config

    files = {}
    for name in NAMES:
        tensors = shapes_only(args.files / f"{name}.safetensors")
        config = huggingface_guess.guess(tensors)
        with torch.device("meta"):
            unet = IntegratedUNet2DConditionModel(**_settings(config.unet_config))
        own = {f"{PREFIX}{key}": tensor for key, tensor in unet.state_dict().items()}
        given = {key: tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
        files[name] = {"detected": type(config).__name__, **against(given, own)}

    file = args.files / f"{SMALL}.safetensors"
    weights = load_file(file)
    settings = _settings(detect_unet_config(weights, PREFIX)) | {"num_head_channels": HEAD, "num_heads": -1}
    tensors = {key.removeprefix(PREFIX): t.float() for key, t in weights.items() if key.startswith(PREFIX)}
    call = load_file(args.files / f"{SMALL}-call.safetensors")
    errors = {}
    for label, state in {
        "with the middle block": tensors,
        "without it": {key: tensor for key, tensor in tensors.items() if not key.startswith("middle_block.")},
    }.items():
        torch.manual_seed(0)
        unet = IntegratedUNet2DConditionModel(**settings).eval()
        unet.load_state_dict(state, strict=False)
        out = unet(call["sample"], call["timestep"], context=call["context"], y=call["vector"])
        errors[label] = float((out - call["out"]).norm() / call["out"].norm())
    files[SMALL] = {"relative_error": errors, "sha256": sha256(file)}
    write(args, "python recipes/clients/forge.py", {"weights": "random", "stand_ins": sorted(stood_in), "files": files})


def _settings(config: dict) -> dict:
    """A detected configuration as Forge's U-Net takes it: without what only other networks have."""
    from inspect import signature

    from backend.nn.unet import IntegratedUNet2DConditionModel

    known = signature(IntegratedUNet2DConditionModel.__init__).parameters
    return {name: value for name, value in config.items() if name in known}


if __name__ == "__main__":
    main()
