"""Teacher U-Net -> student U-Net: the KOALA cut, weights copied by the layer map."""

from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel

from koala.layer_map import layer_map, teacher_key
from koala.specs import UNetSpec


def cut(weights: Mapping[str, torch.Tensor], student: UNetSpec, teacher: UNetSpec) -> UNet2DConditionModel:
    """A student U-Net whose every tensor is the teacher's (KOALA, section 4.1: "at the same block location").

    Raises ValueError naming the tensors for which the map has no source of the right shape.
    """
    unet = UNet2DConditionModel(**student.config())
    table = layer_map(student, teacher)
    copied, orphans = {}, []
    for key, own in unet.state_dict().items():
        source = teacher_key(key, table)
        if source not in weights or weights[source].shape != own.shape:
            orphans.append(key)
        else:
            copied[key] = weights[source]
    if orphans:
        raise ValueError(
            f"{len(orphans)} tensors of {student.name} have no source in {teacher.name}: {', '.join(orphans[:5])}"
        )
    unet.load_state_dict(copied)
    return unet
