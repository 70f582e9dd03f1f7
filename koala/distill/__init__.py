"""Self-attention distillation (KOALA, section 3.1.2)."""
