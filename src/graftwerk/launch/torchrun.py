"""torchrun on one node of a job, which passes on what its workers ended with.

    python -m graftwerk.launch.torchrun --nnodes=2 --nproc-per-node=4 … -m graftwerk run FOLDER

The options are torchrun's. It differs in three things: the exit code is that of the first worker
that failed (and is written to the file GRAFTWERK_CODE, for a scheduler reports another node's); a
signal, once its workers have saved and ended, gives the code that means "again"; and under Slurm
the first node of the step is the meeting place, whatever names it has.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from graftwerk.errors import AGAIN, DONE


def main(arguments: list[str]) -> int:
    options = run.parse_args(arguments)
    if "SLURM_NODEID" in os.environ:
        host = f"is_host={int(os.environ['SLURM_NODEID'] == '0')}"
        options.rdzv_conf = ",".join(filter(None, [options.rdzv_conf, host]))
    try:
        run.run(options)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return _noted(code if code >= 0 else 128 - code)
    except SignalException:
        return _noted(AGAIN)
    return DONE


def _noted(code: int) -> int:
    """The first node to fail tells the others' script why."""
    file = os.environ.get("GRAFTWERK_CODE")
    if file and not Path(file).exists():
        with contextlib.suppress(OSError):  # the disk may be full, which is what the code says
            Path(file).write_text(f"{code}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
