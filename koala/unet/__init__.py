"""A U-Net as data: its specification, parameters, costs and layer names."""
