"""A pipeline folder to one safetensors file in the original layout, and back."""
