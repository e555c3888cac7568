"""`--json`: what a command has come to, as one line for scripts."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from traceback import format_exception_only
from typing import Any

from anneal.errors import SHOWN

RESULT: dict[str, Any] = {}  # what is known of the command's run
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of a process among several


def in_one_line(command: str, main: Callable[[], Any]) -> Any:
    """Run a command; on stdout stands nothing but the line, and on stderr what it prints."""
    RESULT.clear()
    SHOWN.clear()
    sys.stdout.flush()
    stdout, status = os.dup(1), 1
    os.dup2(2, 1)  # for the processes that it starts, too
    try:
        with redirect_stdout(sys.stderr):
            found = main()
        status = 0
        return found
    except SystemExit as e:
        status = int(e.code or 0)
        raise
    except Exception as e:
        SHOWN.append("".join(format_exception_only(e)).rstrip())
        raise
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        if all(os.environ.get(name, "0") == "0" for name in RANKS):
            error = "\n".join(SHOWN) or None
            line = json.dumps({"command": command, "status": status, "error": error, **RESULT})
            # JSON has neither NaN nor infinity.
            print(json.dumps(json.loads(line, parse_constant=str)), flush=True)
