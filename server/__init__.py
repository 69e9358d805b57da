"""The inference server and its command line."""

import os

# Before torch starts its threads: on a busy machine threads that spin while they wait make small
# networks several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
