"""Run the command line: `python -m rso_lib`."""

import warnings

from .run.cli import main

if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_, **__: f"\n{message}\n"
    main()
