import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hamjepa_jax import stopping
from hamjepa_jax.stopping import SIGNALS, stop_on_request

LONG = 60.0


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Not on Google Cloud, behind a proxy that does not answer, and no thread may be left."""
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(stopping, "PRODUCT_NAME", tmp_path / "missing")
    monkeypatch.setattr(stopping, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    before = handlers()
    yield
    assert handlers() == before
    assert signal.set_wakeup_fd(-1) == -1
    assert watches() == []


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def watches():
    return [
        thread for thread in threading.enumerate() if "_limit_time" in thread.name or "_await_notice" in thread.name
    ]


def wait_until(condition, timeout=5.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_the_next_one_would_act(number):
    before = handlers()
    with stop_on_request(grace_seconds=LONG) as request:
        assert request.signal_number is None
        assert handlers() != before
        signal.raise_signal(number)
        assert (request.signal_number, request.reason) == (number, number.name)
        assert handlers() == before


def test_nothing_is_left_of_a_request_that_never_came():
    before = handlers(), os.listdir("/dev/fd")
    start = time.monotonic()
    with contextlib.suppress(RuntimeError), stop_on_request(grace_seconds=LONG) as request:
        raise RuntimeError
    assert time.monotonic() - start < 1
    assert (handlers(), os.listdir("/dev/fd")) == before
    request.stop(signal.SIGTERM, "too late")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_signal_that_follows_a_notice_belongs_to_it(number):
    before = handlers()
    with stop_on_request(grace_seconds=LONG) as request:
        request.stop(signal.SIGTERM, "another process")
        signal.raise_signal(number)
        request.stop(signal.SIGINT, "a third process")
        assert (request.signal_number, request.reason) == (signal.SIGTERM, "another process")
        assert handlers() == before


def run(code):
    """Runs code in another process, in which `stop` is a request with a grace time of 0.3 seconds."""
    header = "import ctypes, os, signal, sys, threading, time\nfrom hamjepa_jax.stopping import stop_on_request\n"
    body = "with stop_on_request(grace_seconds=0.3) as stop:\n" + "".join(f"    {line}\n" for line in code)
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", header + body], capture_output=True, text=True, timeout=20)
    assert time.monotonic() - start < 10
    return ended


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)])
def test_a_second_signal_acts_at_once(number, code):
    twice = [f"signal.raise_signal({number:d})", "print(stop.reason, flush=True)", f"signal.raise_signal({number:d})"]
    ended = run([*twice, "print('still here', flush=True)", "time.sleep(30)"])
    assert (ended.returncode, ended.stdout) == (code, f"{number.name}\n")
    assert ("KeyboardInterrupt" in ended.stderr) == (number == signal.SIGINT)


STUCK = "time.sleep(30)"
# A deadlock in C, from which no handler of Python is called.
STUCK_IN_C = (
    "lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64); lock(mutex); lock(mutex)"
)


@pytest.mark.parametrize("stuck", [STUCK, STUCK_IN_C])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_that_is_stuck_is_ended(number, code, stuck):
    ended = run([f"threading.Timer(0.2, os.kill, (os.getpid(), {number:d})).start()", stuck])
    line = f"not saved within 0.3 s of {number.name} (config.checkpoint.grace_seconds); the last checkpoint stays\n"
    assert (ended.returncode, ended.stderr) == (code, line)


def test_a_process_whose_terminal_is_gone_is_ended():
    assert run(["sys.stderr.close()", f"signal.raise_signal({signal.SIGTERM:d})", STUCK]).returncode == 143


def test_another_process_starts_the_grace_time_too(capsys):
    ended = []
    with stop_on_request(grace_seconds=0.2, out_of_time=lambda code: ended.append((code, time.monotonic()))) as request:
        time.sleep(0.3)
        assert not ended
        start = time.monotonic()
        request.stop(signal.SIGTERM, "another process")
        wait_until(lambda: ended)
    ((code, end),) = ended
    assert code == 143
    assert 0.2 <= end - start < 2
    assert capsys.readouterr().err.startswith("not saved within 0.2 s of another process (config.")


def test_a_context_that_is_left_in_time_is_not_ended():
    ended = []
    with stop_on_request(grace_seconds=0.1, out_of_time=ended.append):
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert not ended


def test_no_grace_time_is_no_limit():
    ended = []
    with stop_on_request(grace_seconds=0, out_of_time=ended.append) as request:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert request.signal_number == signal.SIGTERM
    assert not ended


def test_other_signals_ask_for_nothing():
    ended, seen = [], []
    previous = signal.signal(signal.SIGUSR1, lambda *_: seen.append(True))
    try:
        with stop_on_request(grace_seconds=0.05, out_of_time=ended.append) as request:
            signal.raise_signal(signal.SIGUSR1)
            time.sleep(0.1)
            assert (request.signal_number, ended, seen) == (None, [], [True])
            signal.raise_signal(signal.SIGTERM)
            wait_until(lambda: ended)
    finally:
        signal.signal(signal.SIGUSR1, previous)


class MetadataServer(http.server.ThreadingHTTPServer):
    """Answers like Google's, after all of `nonsense`; without the header it refuses."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer, bind_and_activate=False)
        self.server_bind()
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.status, self.nonsense, self.questions = 200, [], 0
        self.instance = {"preempted": b"FALSE", "maintenance-event": b"NONE"}


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self.server.questions += 1
        if self.server.nonsense:
            self.server.nonsense.pop()(self)
            return
        allowed = self.headers["Metadata-Flavor"] == "Google"
        self.send_response(self.server.status if allowed else 403)
        self.end_headers()
        folder, _, entry = self.path.rpartition("/")
        assert folder == "/computeMetadata/v1/instance"
        self.wfile.write(self.server.instance[entry])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A metadata server that is not listening yet; `listen` lets it."""
    with MetadataServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))

        def listen():
            server.server_activate()
            thread.start()

        server.listen = listen
        monkeypatch.setenv("GCE_METADATA_HOST", server.host)
        yield server
        if thread.is_alive():
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "notice", [{"preempted": b"TRUE\n"}, {"maintenance-event": b"TERMINATE_ON_HOST_MAINTENANCE"}], ids=str
)
def test_a_preemption_notice_asks(server, notice):
    server.listen()
    ended = []
    with stop_on_request(grace_seconds=0.1, out_of_time=ended.append) as request:
        wait_until(lambda: server.questions > 4)
        assert request.signal_number is None
        server.instance |= notice
        wait_until(lambda: request.signal_number is not None)
        assert (request.signal_number, request.reason) == (signal.SIGTERM, "a preemption notice")
        wait_until(lambda: ended)
    assert ended == [143]


@pytest.mark.parametrize(
    ("status", "instance"),
    [
        (403, {"preempted": b"TRUE"}),
        (200, {"preempted": b"TRUE" * 99}),
        (200, {"maintenance-event": b"MIGRATE_ON_HOST_MAINTENANCE"}),
    ],
)
def test_what_is_no_notice(server, status, instance):
    server.status = status
    server.instance |= instance
    server.listen()
    with stop_on_request(grace_seconds=LONG) as request:
        wait_until(lambda: server.questions > 6)
        assert request.signal_number is None


def test_a_server_that_cannot_be_understood_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(stopping, "ANSWER_SECONDS", 0.2)
    server.instance["preempted"] = b"TRUE"
    server.nonsense = [
        lambda answer: None,
        lambda answer: answer.wfile.write(b"\xff\xfe\x00 nonsense\r\n\r\n"),
        lambda answer: answer.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense"),
        lambda answer: answer.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: nowhere://\xff\r\n\r\n"),
        lambda answer: answer.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"TRUE" * 1000),
        lambda answer: time.sleep(0.4),
    ]
    with stop_on_request(grace_seconds=LONG) as request:
        # Until now every connection is refused.
        time.sleep(0.1)
        assert (len(watches()), server.questions) == (2, 0)
        server.listen()
        wait_until(lambda: request.signal_number is not None)
        assert server.nonsense == []


@pytest.mark.parametrize("host", ["127.0.0.1:none", "http://127.0.0.1", "no host", "[", "\udcff", "a." * 200])
def test_a_host_that_cannot_be_understood(monkeypatch, host):
    monkeypatch.setenv("GCE_METADATA_HOST", host)
    with stop_on_request(grace_seconds=LONG) as request:
        time.sleep(0.05)
        assert len(watches()) == 2
        assert request.signal_number is None


@pytest.mark.parametrize(
    ("nonsense", "questions"), [([], 2), ([lambda answer: time.sleep(1.5)], 1)], ids=["waiting", "asking"]
)
def test_the_context_is_left_at_once(server, monkeypatch, nonsense, questions):
    monkeypatch.setattr(stopping, "POLL_SECONDS", LONG)
    monkeypatch.setattr(stopping, "ANSWER_SECONDS", 0.2)
    server.nonsense = nonsense
    server.listen()
    with stop_on_request(grace_seconds=LONG):
        wait_until(lambda: server.questions == questions)
        signal.raise_signal(signal.SIGTERM)
        start = time.monotonic()
    assert time.monotonic() - start < 1.2
    assert watches() == []


@pytest.mark.parametrize(
    ("product", "hosts"),
    [
        (None, set()),
        ("Standard PC (Q35 + ICH9, 2009)\n", set()),
        ("Google Compute Engine\n", {"metadata.google.internal"}),
    ],
)
def test_only_machines_of_google_are_asked(monkeypatch, tmp_path, product, hosts):
    asked = set()
    monkeypatch.setattr(stopping, "_metadata", lambda host, entry: asked.add(host) or b"")
    if product is not None:
        stopping.PRODUCT_NAME.write_text(product)
    with stop_on_request(grace_seconds=LONG):
        time.sleep(0.05)
        assert len(watches()) == 1 + len(hosts)
    assert asked == hosts
