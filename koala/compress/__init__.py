"""A student cut out of its teacher: surgery on the U-Net, without training."""
