"""One import in a fresh process: `python startup_import.py PACKAGE`. The parent keeps the time."""

import importlib
import json
import sys

from startup_clock import rss_mb

importlib.import_module(sys.argv[1])
print(json.dumps({"mb": rss_mb()}))
