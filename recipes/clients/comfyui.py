"""What ComfyUI's own code makes of our single files and LoRAs. Runs in ComfyUI's environment, without koala:

    python recipes/clients/comfyui.py --source COMFYUI --files work/clients --out docs/measurements/clients-comfyui.json

COMFYUI is a clone of it. `recipes.clients.files` writes the files. Nothing of ComfyUI is copied.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import against, arguments, header, shapes_only, stand_in, write

PACKAGES = ("torchvision", "torchaudio", "av", "sentencepiece", "kornia", "spandrel", "OpenGL")
NAMES = ("sdxl", "koala-700m", "koala-1b", "tiny-koala-700m")


def main() -> None:
    """Detection, the U-Net's names and shapes, and the layers of a LoRA that find their place."""
    args = arguments(__doc__)
    stood_in = stand_in(*PACKAGES)
    sys.argv.append("--cpu")
    sys.path.insert(0, str(args.source))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.lora
    import comfy.model_detection as detection

    files = {}
    for name in NAMES:
        tensors = shapes_only(args.files / f"{name}.safetensors")
        prefix = detection.unet_prefix_from_state_dict(tensors)
        config = detection.model_config_from_unet(tensors, prefix)
        if config is None:
            files[name] = {"detected": None}
            continue
        config.set_inference_dtype(torch.float16, None)
        with torch.device("meta"):
            model = config.get_model(tensors, prefix, device="meta")
        own = {f"{prefix}{key}": tensor for key, tensor in model.diffusion_model.state_dict().items()}
        given = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        files[name] = {
            "detected": type(config).__name__,
            "middle": config.unet_config.get("transformer_depth_middle"),
            "depths": config.unet_config["transformer_depth"],
            **against(given, own),
        }
        if name == "koala-700m":
            table = comfy.lora.model_lora_keys_unet(model, {})
            files["loras"] = {
                names: _read(args.files / f"lora-{names}.safetensors", table) for names in ("kohya", "peft")
            }
    write(args, "python recipes/clients/comfyui.py", {"weights": "none", "stand_ins": sorted(stood_in), "files": files})


def _read(file: Path, table: dict) -> dict[str, int]:
    """How many of a LoRA's layers have a place in ComfyUI's table."""
    endings = (".lora_down.weight", ".lora_A.weight")
    layers = [key.removesuffix(end) for key in header(file) for end in endings if key.endswith(end)]
    return {"layers": len(layers), "read": sum(layer in table for layer in layers)}


if __name__ == "__main__":
    main()
