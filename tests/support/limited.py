"""Runs a function in a child process that may take so much time and memory, and no more."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable

from core.base.errors import ReenactError


def limited(
    function: Callable, *args: object, seconds: float = 2, megabytes: int = 500, wall: float = 60
) -> str:
    """Calls a function on some arguments.

    Args:
        function: to call.
        args: its arguments.
        seconds: of processor time that it may take.
        megabytes: that it may take beyond what the process has.
        wall: seconds after which it is taken to be blocked.

    Returns:
        The sentence of the `ReenactError` that it raised; "" if it raised none.

    Raises:
        AssertionError: it raised another error, died, or went over a limit.
    """
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child() -> None:
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

    process = context.Process(target=child)
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
