"""The inference server and its command line."""

import os

# Before torch starts its threads: how long they spin before they sleep while they wait. Not at all
# makes steps half as long again where nothing else runs; much longer (the default), several times
# as long where something does. Read by GNU's OpenMP, which torch brings.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
