"""``python -m tproxy`` and the ``tproxy`` command."""

import sys

from tproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
