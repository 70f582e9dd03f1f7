"""A run sharded by FSDP2 over CPU processes: sharded_on_cpu.py CONFIG RUN [STEP]; for test_processes.py.

accelerate shards on GPUs only, by its own choice: torch's FSDP2 and every line of the trainer run on CPUs as well. So
here accelerate is told that these are GPUs, after the processes have found each other.
"""

import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType

from koala.distill.config import read
from koala.distill.processes import this_process
from koala.distill.run_folder import RunFolder
from koala.distill.trainer import train

if __name__ == "__main__":
    this_process()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    config, run, *step = sys.argv[1:]
    train(RunFolder(path=Path(run)), read(Path(config)), resume_from=int(step[0]) if step else None)
