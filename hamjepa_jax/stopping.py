"""Requests to stop: Ctrl-C, SIGTERM, a preemption notice of Google Cloud."""

import contextlib
import http.client
import os
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What Google Cloud's metadata server says about half a minute before the machine is taken away.
NOTICES = {"preempted": b"TRUE", "maintenance-event": b"TERMINATE_ON_HOST_MAINTENANCE"}
# Seconds from one question to the next, and until a question counts as unanswered.
POLL_SECONDS, ANSWER_SECONDS = 3.0, 1.0
# Where Linux names the model of the machine; Google's own libraries, too, recognise theirs by it.
PRODUCT_NAME = Path("/sys/class/dmi/id/product_name")


class StopRequest:
    """What has asked the run to stop, if anything has.

    Attributes:
        signal_number: the signal, or the one that stands for what has asked; None as long as nothing has.
        reason: what has asked, in words.
    """

    signal_number: int | None = None
    reason: str = ""

    def __init__(self, bell: socket.socket):
        """Nothing has asked yet.

        Args:
            bell: receives the number of the signal when something asks; must not block.
        """
        self._bell = bell

    def stop(self, signal_number: int, reason: str) -> None:
        """Asks, unless something has asked before; allowed in any thread and in a signal handler.

        Args:
            signal_number: the signal, or the one that stands for what asks.
            reason: what asks, in words.
        """
        if self.signal_number is None:
            # The number comes last, because whoever sees it goes on to read the reason.
            self.reason, self.signal_number = reason, signal_number
            # Closed once the context has been left.
            with contextlib.suppress(OSError):
                self._bell.send(bytes([signal_number]))


@contextlib.contextmanager
def stop_on_request(*, grace_seconds: float, out_of_time: Callable[[int], None] = os._exit) -> Iterator[StopRequest]:
    """Turns SIGINT, SIGTERM and preemption notices into a request that the loop sees; a second signal acts at once.

    Whoever has asked does not wait for ever, so a process that has been asked leaves the context in time, or ends
    wherever it is.

    Args:
        grace_seconds: how long it may take from the request until the context is left; 0 for any time.
        out_of_time: ends the process, and takes its exit code.

    Yields:
        The request.
    """
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    ear, bell = socket.socketpair()
    bell.setblocking(False)
    request, left = StopRequest(bell), threading.Event()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(signal_number: int, frame: object) -> None:
        restore()
        request.stop(signal_number, signal.Signals(signal_number).name)

    watches = [(_limit_time, (request, left, ear, grace_seconds, out_of_time))]
    if (host := _metadata_host()) is not None:
        watches.append((_await_notice, (request, left, host)))
    threads = [threading.Thread(target=watch, args=arguments, daemon=True) for watch, arguments in watches]
    with ear, bell:
        for thread in threads:
            thread.start()
        # Handlers run only between two instructions of Python, which a compilation or a collective may keep from
        # coming; the bell rings at once.
        previous_bell = signal.set_wakeup_fd(bell.fileno())
        for number in SIGNALS:
            signal.signal(number, handle)
        try:
            yield request
        finally:
            restore()
            signal.set_wakeup_fd(previous_bell)
            left.set()
            bell.shutdown(socket.SHUT_WR)
            for thread in threads:
                # The resolution of a name, which has no time limit, must not hold up the end of the run.
                thread.join(len(NOTICES) * ANSWER_SECONDS)


def _limit_time(
    request: StopRequest,
    left: threading.Event,
    ear: socket.socket,
    grace_seconds: float,
    out_of_time: Callable[[int], None],
) -> None:
    """Waits for the request, and then for the end of the context or of the grace time."""
    # The bell rings for every signal that has a handler, and is silent when the context has been left.
    while (rung := ear.recv(1)) and rung[0] not in SIGNALS:
        pass
    if not rung:
        return
    request.stop(rung[0], signal.Signals(rung[0]).name)
    if left.wait(grace_seconds or None):
        return
    try:
        when = f"within {grace_seconds:g} s of {request.reason} (config.checkpoint.grace_seconds)"
        print(f"not saved {when}; the last checkpoint stays", file=sys.stderr, flush=True)
    finally:
        out_of_time(128 + request.signal_number)


def _metadata_host() -> str | None:
    """HOST or HOST:PORT of Google Cloud's metadata server, or None on any other machine."""
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    with contextlib.suppress(OSError):
        if b"Google" in PRODUCT_NAME.read_bytes():
            return "metadata.google.internal"
    return None


def _await_notice(request: StopRequest, left: threading.Event, host: str) -> None:
    """Asks the metadata server until there is a notice."""
    while not any(_metadata(host, entry) == notice for entry, notice in NOTICES.items()):
        if left.wait(POLL_SECONDS):
            return
    request.stop(signal.SIGTERM, "a preemption notice")


def _metadata(host: str, entry: str) -> bytes:
    """What the metadata server says of this machine; nothing if it cannot be understood."""
    url = f"http://{host}/computeMetadata/v1/instance/{entry}"
    without_proxies = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        question = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with without_proxies.open(question, timeout=ANSWER_SECONDS) as answer:
            return answer.read(100).strip()
    except (OSError, http.client.HTTPException, ValueError):
        return b""
