"""Where a U-Net looks: recorded queries and keys, and maps and pictures made of them, for one model or several."""
