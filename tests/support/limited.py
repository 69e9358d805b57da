"""Runs a function in a child process that may take so much time and memory, and no more.

The child is no copy of the tests' own process: what other tests left there, such as threads that
hold a lock just then, would make it wait for ever.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue

from core.base.errors import ReenactError

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["core.edit.directions", "core.stylize.style"])  # and all of torch


def limited(
    function: Callable, *args: object, seconds: float = 2, megabytes: int = 500, wall: float = 60
) -> str:
    """Calls a function on some arguments.

    Args:
        function: to call, of a module that can be imported.
        args: its arguments.
        seconds: of processor time that it may take.
        megabytes: that it may take beyond what the process has.
        wall: seconds after which it is taken to be blocked.

    Returns:
        The sentence of the `ReenactError` that it raised; "" if it raised none.

    Raises:
        AssertionError: it raised another error, died, or went over a limit.
    """
    results = _CONTEXT.SimpleQueue()
    process = _CONTEXT.Process(target=_child, args=(results, megabytes, function, *args))
    process.start()
    process.join(wall)
    if process.is_alive():
        process.kill()
        raise AssertionError("it hangs")
    assert not results.empty(), f"the process ended with {process.exitcode}"
    said, wrong, took = results.get()
    assert not wrong, wrong
    assert took < seconds, f"it took {took:.1f} s"
    return str(said)


def _child(results: SimpleQueue, megabytes: int, function: Callable, *args: object) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)
    began = time.process_time()
    said, wrong = "", ""
    try:
        function(*args)
    except ReenactError as error:
        said = str(error)
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error!s:.200}"
    results.put((said, wrong, time.process_time() - began))
