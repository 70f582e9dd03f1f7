"""What a distillation learns from: pictures and captions, encoded once into a cache on disk."""
