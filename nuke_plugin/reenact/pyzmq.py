"""Imports ZeroMQ for the Python that runs this; the only place in the plugin that does.

    from reenact.pyzmq import zmq

A zmq that this Python already has takes precedence: another tool in the same Nuke may rely on it,
and only one can be loaded. If there is none, or it does not load, the one is imported that
install.py placed beside this file for this Python and system. sys.path stays as it was.
"""

import sys
from pathlib import Path

__all__ = ["FOLDER", "zmq"]

# Nuke is x86-64 on Linux and Windows; macOS's wheels hold both processors.
FOLDER = Path(__file__).parent / "vendor" / "py{}{}-{}".format(*sys.version_info[:2], sys.platform)

try:
    import zmq.auth
except ImportError as error:
    for name in [name for name in sys.modules if name.partition(".")[0] == "zmq"]:
        del sys.modules[name]  # submodules that loaded before it failed
    sys.path.insert(0, str(FOLDER))
    try:
        import zmq.auth
    except ImportError as vendored:
        installer = Path(__file__).resolve().parents[2] / "install.py"
        raise ImportError(
            "Reenact has no pyzmq that loads in Python {}.{} on {} ({}). "
            "Run: python3 {} nuke".format(*sys.version_info[:2], sys.platform, vendored, installer)
        ) from error
    finally:
        sys.path.remove(str(FOLDER))
