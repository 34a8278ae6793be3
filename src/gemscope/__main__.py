"""`python -m gemscope`."""

import sys

from gemscope.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
