"""What every command shares: one-line errors, exit statuses."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from animatediff.errors import UserError, one_line

INTERRUPTED = 128 + signal.SIGINT


def run_command(main: Callable[[], int]) -> None:
    """Run a command's `main` and exit with its status.

    UserError becomes one line on stderr and status 2; Ctrl-C one line and status 130. Anything else is a defect of
    ours and keeps its traceback.
    """
    try:
        status = main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted: whatever was finished is kept", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)
