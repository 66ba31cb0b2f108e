"""What orbax says on its own while it saves: kept off the console, but for a failure that nothing else tells of."""

import logging
import sys
from pathlib import Path

from absl import logging as absl_logging


class OrbaxLog(logging.Filter):
    """Keeps what orbax logs off the console, but remembers the failure to write that may be in it.

    Where one of several processes cannot write, orbax logs that at once, and raises it after 20 minutes of waiting for
    the others, which wait too.

    Attributes:
        failure: what made writing fail in this process, or None.
    """

    failure: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line of the log is shown."""
        if "orbax" not in Path(record.pathname).parts:
            return True
        if record.threadName == "async_save" and record.exc_info:
            self.failure = record.exc_info[1]
        return False


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Reports an exception that nobody can catch, unless a failed save has left it behind.

    Each array whose writing goes on when that of another has failed finds that nobody waits for it any more.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        REPORT_UNRAISABLE(unraisable)


ORBAX_LOG = OrbaxLog()
absl_logging.get_absl_logger().addFilter(ORBAX_LOG)
absl_logging.get_absl_logger().setLevel("WARNING")
REPORT_UNRAISABLE, sys.unraisablehook = sys.unraisablehook, _report_unraisable
