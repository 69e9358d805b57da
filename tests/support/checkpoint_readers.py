"""All that reads files of others, tried one after the other."""

import time
from pathlib import Path

from core.base.errors import ReenactError
from core.edit.directions import load_directions
from core.generator.checkpoints import load_any
from core.generator.encoders import load_encoder

SECONDS = 2.0  # of processor time that a reader may take to say what is wrong
READERS = (load_any, load_encoder, load_directions)


def read_all(path: Path) -> None:
    """Reads a file by every reader; raises the last refusal if all of them refuse it.

    Raises:
        AssertionError: one of them took more than `SECONDS` of processor time.
    """
    refused = None
    for reader in READERS:
        began = time.process_time()
        try:
            reader(path)
        except ReenactError as error:
            refused = error
        else:
            return
        finally:
            took = time.process_time() - began
            assert took < SECONDS, f"{reader.__name__} took {took:.1f} s"
    assert refused is not None
    raise refused
