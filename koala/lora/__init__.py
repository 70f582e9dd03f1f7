"""LoRA files in every format, and the change that each makes to a layer's weight."""
