"""One training step: which features are compared, and every term of the loss."""
