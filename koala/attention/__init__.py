"""Where a U-Net looks: recorded queries and keys, maps and pictures made of them, teacher beside student."""
