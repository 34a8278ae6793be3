"""One import in a fresh process: `python startup_import.py PACKAGE`."""

import importlib
import json
import sys

from startup_clock import Stopwatch, rss_mb

watch = Stopwatch()
importlib.import_module(sys.argv[1])
seconds = watch.read()
print(json.dumps({"seconds": seconds, "rss_mb": rss_mb()}))
