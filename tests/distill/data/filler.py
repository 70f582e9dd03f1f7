"""Encodes a config's data in a process of its own: `python filler.py CONFIG.json SECONDS`, a pause after each message.

It begins, once its encoders are loaded, when a line comes in.
"""

import json
import sys
import time
from pathlib import Path

import torch

from koala.distill.config import DistillConfig
from koala.distill.data.cache import encode, find
from koala.distill.data.encoders import EncoderFiles, Encoders, encoder_files


class Waiting(EncoderFiles):
    def load(self, device: torch.device | str) -> Encoders:
        encoders = super().load(device)
        print("ready", flush=True)
        sys.stdin.readline()
        return encoders


def main(file: str, pause: str) -> None:
    def report(done: int, total: int, message: str) -> None:
        print(done, total, message, flush=True)
        time.sleep(float(pause))

    config = DistillConfig.from_dict(json.loads(Path(file).read_text()))
    result = encoder_files(config.teacher, "cpu")
    waiting = Waiting(name=result.name, location=result.location, dtype=result.dtype)
    data = encode(find(config, waiting), waiting, device="cpu", on_progress=report)
    print("pictures", data.num_pictures, flush=True)


main(*sys.argv[1:])
