"""KOALA: Stable Diffusion XL's U-Net, compressed and distilled in its self-attention (arXiv 2312.04005)."""

__version__ = "0.1.0"
