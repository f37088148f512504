"""torchrun for a training on several machines, with one line where a process fails in place of two pages:

    python -m toolkit.train.torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d \\
        --rdzv-endpoint FIRST:29500 --rdzv-id entry --max-restarts 3 -m toolkit train finetune ...

Takes torchrun's arguments. The sentence of the process that failed, and what torchrun logs of a restart,
stand above that line.
"""

import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import parse_args, run


def main(argv: list[str] | None = None) -> int:
    """Run torchrun; returns the exit status of the process that failed first, or 0."""
    # otherwise torch 2.13 does not tell a machine that returns where the first one is
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    arguments = parse_args(argv)
    try:
        run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"error: process {rank} of the training ended with status {status}: see above", file=sys.stderr)
        return status
    except SignalException as signalled:
        return 128 + signalled.sigval
    except KeyboardInterrupt:  # before the processes were started
        return 130
    except RendezvousError:
        advice = "see whether all of them reach it, and start the same command on each"
        print(f"error: the machines did not meet at {arguments.rdzv_endpoint}: {advice}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
