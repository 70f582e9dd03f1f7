"""LoRA files of every dialect, and the change that each makes to a layer's weight."""
