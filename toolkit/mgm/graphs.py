"""Work of many small kernels, launched on a GPU as one."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Output = TypeVar("Output")


class Graph(Generic[Output]):
    """A function of tensors as a CUDA graph: to launch its thousand kernels one by one takes longer than some
    of them run, and asks for Python's lock each time.

    pool: memory that graphs which never run at once may share. inputs: the graph's own, of the shapes that
    every call has. The function has run with such before, which loads its kernels.
    """

    def __init__(self, pool: Any, function: Callable[..., Output], *inputs: Tensor) -> None:
        self.inputs, self.graph = inputs, torch.cuda.CUDAGraph()
        # other threads send images meanwhile
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.output = function(*inputs)

    def __call__(self, *inputs: Tensor) -> Output:
        """What the function returns, in memory that the pool's next graph overwrites."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.output
