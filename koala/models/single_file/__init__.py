"""A whole model as one safetensors file in SDXL's original layout, as most fine-tunes of SDXL are shared."""
