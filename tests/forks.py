"""Commands of Python as processes that are forked from this one.

A new interpreter takes seconds to import torch and transformers, which this one has: a fork has its own exit
status, output, signals and death, and costs nothing. It also has what a test has replaced. That a command
works from an interpreter of its own is shown by the tests that start one with `subprocess`.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]


class Fork:
    """`subprocess.Popen` for `python -c CODE …` and `python -m MODULE …`, after options such as -I.

    stdout, stderr: as there, but PIPE is a file that `communicate` reads at the end.
    """

    def __init__(
        self,
        command: Sequence[object],
        *,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = list(map(str, command))
        self._output: list[IO[bytes] | None] = []
        streams = [stdout, stderr]
        for number, stream in enumerate(streams):
            file = tempfile.TemporaryFile() if stream == subprocess.PIPE else None  # noqa: SIM115
            self._output.append(file)
            streams[number] = file.fileno() if file else stream
        variables = dict(os.environ if env is None else env)
        arguments = self.args[1:], Path(cwd).resolve(), variables, streams, start_new_session
        self._process = multiprocessing.get_context("fork").Process(target=_become, args=arguments)
        self._process.start()
        self.pid, self.kill, self.poll = self._process.pid, self._process.kill, self._exit_status

    def _exit_status(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def communicate(self) -> tuple[str, str]:
        """All output, once it has ended."""
        self.wait()
        texts = []
        for file in self._output:
            if file:
                file.seek(0)
            texts.append(file.read().decode() if file else "")
        return texts[0], texts[1]


def run(
    command: Sequence[object], *, capture_output: bool = True, check: bool = False, **options: Any
) -> subprocess.CompletedProcess:
    """`subprocess.run` with a fork; output is text."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if capture_output else {}
    for ignored in ("text", "timeout"):
        options.pop(ignored, None)
    process = Fork(command, **pipe | options)
    done = subprocess.CompletedProcess(process.args, process.wait(), *process.communicate())
    if check:
        done.check_returncode()
    return done


def _become(
    arguments: list[str], cwd: Path, env: dict[str, str], streams: list[int | None], session: bool
) -> None:
    """Do in this process what `python ARGUMENTS` would."""
    if session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams, start=1):
        if stream == subprocess.DEVNULL:
            stream = os.open(os.devnull, os.O_WRONLY)
        if stream is not None:
            os.dup2(1 if stream == subprocess.STDOUT else stream, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [str(cwd), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    if torch := sys.modules.get("torch"):  # threads of the parent's are missing here, and would be waited for
        torch.set_num_threads(1)
    while arguments[0] not in ("-c", "-m"):
        arguments = arguments[2 if arguments[0] == "-W" else 1 :]
    option, program, *rest = arguments
    sys.argv = [option, *rest]
    if option == "-c":
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), module.__dict__)
    else:
        sys.modules.pop(f"{program}.__main__", None)
        runpy.run_module(program, run_name="__main__", alter_sys=True)
