"""Processes that meet before they compute: they agree on what to do, and learn at once when one of them is gone.

``jax.distributed`` alone stops a survivor with a stack trace of C++, after its heartbeat timeout if nobody happens to
be waiting for the dead, and processes started with different counts wait for each other until they are aborted. Here
process 0 listens at an address, the others tell it how they were started, and the connections stay open: the kernel
closes those of a process however it dies, and process 0 tells the rest its name. A process that stops without dying is
noticed by its silence. Standard library only, so that a wrong start costs no import of JAX.
"""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

__all__ = ["PEER_LOST", "Disagreement", "Meeting", "exit_with_parent", "free_port", "meet", "stop"]

PEER_LOST = 75
"""Exit status of a process that stopped because another did; ``sysexits.h`` calls it "try again later"."""

GRACE_SECONDS = 5.0


class Disagreement(RuntimeError):  # noqa: N818
    """The processes did not all come, or were not all started alike; the message says which and how."""


class Peer(NamedTuple):
    """Another process, as it introduced itself."""

    process_id: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.process_id} (pid {self.pid} on {self.host})"


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def exit_with_parent() -> None:
    """Ends this process when its standard input closes, that is when whoever started it is gone, even by SIGKILL."""
    with contextlib.suppress(
        OSError, AttributeError
    ):  # on Linux the kernel does it even for a stopped process
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os._exit(PEER_LOST)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


class Meeting:
    """The connections of a process to the others; made by :func:`meet`.

    Attributes:
        service: ``host:port`` that process 0 found free for ``jax.distributed.initialize``.
        lost: set to a sentence when a peer is gone, before ``on_loss`` of :meth:`watch` is called.
    """

    def __init__(self, process_id: int, service: str, connections: Mapping[Peer, "_Line"], silence: float):
        self.service = service
        self.lost: str | None = None
        self._process_id = process_id
        self._connections = dict(connections)
        self._silence = silence
        self._noticed = threading.Event()
        self._left = threading.Event()
        self._watching: threading.Thread | None = None
        self._lock = threading.Lock()

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Calls ``on_loss(sentence)`` in a thread of its own, once, when a peer dies, fails or falls silent."""

        def watch() -> None:
            sentence = self._watch()
            if sentence is None:
                self.close()
                return
            self.lost = sentence
            if self._process_id == 0:
                self._tell({"lost": sentence})
            self._noticed.set()
            on_loss(sentence)

        self._watching = threading.Thread(target=watch, name="peers", daemon=True)
        self._watching.start()

    def reason(self, seconds: float = GRACE_SECONDS) -> str | None:
        """Why a collective failed: waits that long for the news of a peer's death, which may come just after."""
        self._noticed.wait(seconds)
        return self.lost

    def leave(self, error: str | None = None) -> None:
        """Says goodbye, so that the others do not take the end of this process for a death; or why it failed.

        Waits for their goodbyes, for a few seconds at most: a connection that is closed with something unread in it
        is reset, and the other end may lose what it was told last.
        """
        self._left.set()
        self._tell({"failed": error} if error else {"done": True})
        if self._watching is None:
            self.close()
        else:
            self._watching.join(GRACE_SECONDS)

    def close(self) -> None:
        """Closes the connections; :meth:`leave` does when the others have left too."""
        with self._lock:
            for line in self._connections.values():
                line.socket.close()

    def _tell(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            for line in self._connections.values():
                line.send(message)

    def _watch(self) -> str | None:
        """What happened to a peer; None when all have left, which they may as they like when this process has."""
        heard = dict.fromkeys(self._connections, time.monotonic())
        spoken = 0.0
        with selectors.DefaultSelector() as selector:
            for peer, line in self._connections.items():
                selector.register(line.socket, selectors.EVENT_READ, peer)
            while heard:
                if not self._left.is_set() and time.monotonic() - spoken > self._silence / 5:
                    spoken = time.monotonic()
                    self._tell({})
                for event, _ in selector.select(self._silence / 10):
                    peer = event.data
                    heard[peer] = time.monotonic()
                    messages = self._connections[peer].receive()
                    sentence = next(filter(None, (_news(peer, message) for message in messages)), None)
                    if {"done": True} in messages or (sentence and self._left.is_set()):
                        selector.unregister(event.fileobj)
                        del heard[peer]
                    elif sentence:
                        return sentence
                silent = [peer for peer, when in heard.items() if time.monotonic() - when > self._silence]
                if silent and self._left.is_set():
                    return None
                if silent:
                    return f"nothing was heard of {silent[0]} for {self._silence:g} s"
        return None


def _news(peer: Peer, message: Mapping[str, Any] | None) -> str | None:
    """The sentence in a message, if there is one; None in place of a message is the end of the connection."""
    if message is None:
        return f"{peer} is gone"
    return f"{peer} failed: {message['failed']}" if "failed" in message else message.get("lost")


class _Line:
    """JSON objects, one a line, over a socket."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._rest = b""

    def send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a dead peer is noticed by reading
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any] | None]:
        """What has come, after waiting for something; None at the end, or if it is not our protocol."""
        try:
            data = self.socket.recv(65536)
            *lines, self._rest = (self._rest + data).split(b"\n")
            messages = [dict(json.loads(line)) for line in lines]
        except (OSError, TypeError, ValueError):
            return [None]
        return [*messages, None] if not data else messages

    def first(self, seconds: float) -> dict[str, Any] | None:
        """The first message, None if none comes in time."""
        self.socket.settimeout(max(seconds, 0.01))
        messages = self.receive()
        while not messages:
            messages = self.receive()
        self.socket.settimeout(None)
        return messages[0]


def meet(
    address: str,
    num_processes: int,
    process_id: int,
    view: Mapping[str, Any],
    *,
    timeout: float = 60.0,
    silence: float = 30.0,
) -> Meeting:
    """Waits for the other processes and compares how all were started.

    Args:
        address: ``host:port`` where process 0 listens and the others find it.
        num_processes: N, as this process was told.
        process_id: 0 … N − 1.
        view: plain JSON that must be the same in all, by name: the fields of the configuration.
        timeout: seconds to wait for the last one.
        silence: seconds without a sign of life after which a process counts as lost.

    Raises:
        Disagreement: in every process that can be reached, if one did not come or differs in a field.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) == 0:
        msg = f"coordinator must be host:port with a port above 0, got {address!r}."
        raise ValueError(msg)
    if not 0 <= process_id < num_processes:
        msg = f"process_id must be in 0 … num_processes − 1 = {num_processes - 1}, got {process_id}."
        raise ValueError(msg)
    own = Peer(process_id, socket.gethostname(), os.getpid())
    deadline = time.monotonic() + timeout
    introduction = {"peer": list(own), "view": {"num_processes": num_processes, **view}}
    if process_id == 0:
        return _host((host, int(port)), num_processes, own, introduction, deadline, silence)
    return _visit((host, int(port)), introduction, deadline, timeout, silence)


def _visit(address, introduction, deadline: float, timeout: float, silence: float) -> Meeting:
    where = f"{address[0]}:{address[1]}"
    while True:
        try:
            connection = socket.create_connection(address, max(deadline - time.monotonic(), 0.01))
            if connection.getsockname() != connection.getpeername():
                break
            connection.close()  # nobody listens yet, and TCP happened to connect the port to itself
        except OSError as error:
            if time.monotonic() > deadline:
                msg = f"process 0 did not answer at {where} within {timeout:g} s ({error})."
                raise Disagreement(msg) from None
            time.sleep(0.05)
    line = _Line(connection)
    line.send(introduction)
    answer = line.first(deadline + 2 * GRACE_SECONDS - time.monotonic())
    if answer is None or "error" in answer:
        connection.close()
        raise Disagreement(answer["error"] if answer else f"process 0 at {where} is gone.")
    return Meeting(introduction["peer"][0], answer["service"], {Peer(*answer["peer"]): line}, silence)


def _host(address, num_processes: int, own: Peer, introduction, deadline: float, silence: float) -> Meeting:
    # Lists: two that were given the same process_id may even share pid and host name, in containers.
    lines: list[tuple[Peer, _Line]] = []
    views: list[tuple[Peer, Mapping[str, Any]]] = [(own, introduction["view"])]
    wanted, closing = num_processes, deadline
    try:
        server = socket.create_server(address, backlog=128)
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        msg = f"process 0 cannot listen at {where} ({error.strerror}); is another process 0 there?"
        raise Disagreement(msg) from error
    with server:
        while len({peer.process_id for peer, _ in views}) < wanted and time.monotonic() < closing:
            server.settimeout(max(closing - time.monotonic(), 0.01))
            with contextlib.suppress(TimeoutError):
                line = _Line(server.accept()[0])
                message = line.first(GRACE_SECONDS)
                if not message or not {"peer", "view"} <= message.keys():
                    line.socket.close()
                    continue
                peer = Peer(*message["peer"])
                lines.append((peer, line))
                views.append((peer, message["view"]))
                wanted = max(wanted, message["view"]["num_processes"])
                if _difference(views):
                    # Those on their way still come and are told; the missing are not waited for.
                    closing = min(closing, time.monotonic() + GRACE_SECONDS)
    error = _difference(views)
    if error is None and len(views) < num_processes:
        missing = sorted(set(range(num_processes)) - {peer.process_id for peer, _ in views})
        error = (
            f"of the {num_processes} processes, {missing} did not come to {address[0]}:{address[1]} in time."
        )
    if error:
        for _, line in lines:
            line.send({"error": error})
            line.socket.close()
        raise Disagreement(error)
    with socket.create_server((address[0], 0)) as probe:
        service = f"{address[0]}:{probe.getsockname()[1]}"
    for _, line in lines:
        line.send({"service": service, "peer": list(own)})
    return Meeting(0, service, dict(lines), silence)


def _difference(views: Sequence[tuple[Peer, Mapping[str, Any]]]) -> str | None:
    """A sentence on the first field in which a process differs from process 0, None if all agree."""
    (first, ours), *others = views
    seen = {first.process_id: first}
    for peer, theirs in others:
        for name in [*ours, *(key for key in theirs if key not in ours)]:
            here, there = ours.get(name, "nothing"), theirs.get(name, "nothing")
            if here != there:
                return (
                    f"the processes were started differently: {name} is {here} in {first}, {there} in {peer}."
                )
        if peer.process_id in seen:
            return f"process_id {peer.process_id} was given twice: {seen[peer.process_id]} and {peer}."
        seen[peer.process_id] = peer
    return None


def stop(sentence: str, status: int) -> NoReturn:
    """Ends the process now, whatever its other threads wait for, after printing one line."""
    print(sentence, file=sys.stderr, flush=True)
    os._exit(status)
