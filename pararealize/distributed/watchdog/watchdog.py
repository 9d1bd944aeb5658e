"""What this rank is doing -> an error on every rank that names the one at fault, soon after anything goes wrong.

Each rank has a thread that tells the others twice a second what its rank is doing (heartbeat.py, connections.py):

    what happens to a rank        how the others know                                    after
    it raises                     it says so before it unwinds                           milliseconds
    it dies, by any means         its connections close, its process is gone             milliseconds
    it hangs in Python            it lives, but others wait for it (diagnosis.py)        timeout
    it is stopped, hangs in C     no heartbeats                                          timeout
    its machine vanishes          no heartbeats                                          timeout

What may be judged is only what a rank has said itself and how long it has been silent, by the clock of the one that
judges: a busy rank is never at fault, however long it takes, until another one has waited for it for ``timeout``.

To know is not enough: the main thread of a survivor stands in a wait of gloo that nothing can interrupt, for up to its
own time-out. So the watching thread ends the waits of its rank (abort.py). The main thread leaves its wait with
gloo's error, and :meth:`Watch.step` gives it the true one.

An error of communication is a consequence: it is held back for a moment until the cause has come. Any other error is
a cause: it is told to the others and passes on unchanged. The first failure that a rank learns of is the one it keeps
and passes on, so a rank that fails because its neighbour did is not blamed.

A rank that comes out of a hang finds its own name in the error. One that does not, with the failure known to its
thread, has another ``timeout`` seconds; then it writes where it hangs to stderr and ends its process, so that a job
does not stand for ever where no launcher ends the rest.

NCCL: its waits do not hold up Python, so the main thread stands where it first needs a value, such as ``loss.item()``;
there, waits end by aborting the communicators. That is written from the documentation and has not been run.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import faulthandler
import itertools
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from pararealize.errors import AgreedError, DistributedError, RankError

from .abort import break_waits
from .connections import Connections
from .diagnosis import RankStatus, find_culprit, silent
from .heartbeat import Failure, Farewell, Heartbeat, Loss, Message
from .rendezvous import connect_ranks

__all__ = ["Watch"]

_GRACE = 2.0  # seconds that an error of communication waits for its cause
_LAST_WORDS = 1.0  # seconds that a rank's last messages may take
_LEFT = 1.0  # seconds in which what a rank sent before it left must have come
_COMMUNICATION = ("gloo", "nccl", "connection", "pair closure", "timed out", "socket", "broken pipe")
_meetings: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)


@dataclasses.dataclass(frozen=True, slots=True)
class _State:
    doing: str
    peer: int | None = None
    waits: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)


class Watch:
    """Ends every rank, with an error that names the one at fault, when one raises, dies or hangs.

    All ranks make it at about the same time. It costs one thread, one connection to every other rank, and a message of
    a hundred bytes to each of them every half second; the main thread sends nothing.

    Args:
        store: where the ranks meet: a store that all of them share, or a process group of just these ranks. It is not
            used any more afterwards, so it does not matter whose process hosts it.
        rank: this rank, counted as ``who`` is; a group knows it.
        who: a description of every rank, such as ``"rank 2 (segment 3: layer2.4 to layer3.1)"``.
        timeout: seconds after which a wait means that the other side hangs, and that ranks have to come here.
        peers: which ranks callers of :meth:`waiting` mean by 0, 1, …, where these count otherwise: those of one
            replica's group, for instance, in a watch over all replicas.

    Raises:
        DistributedError: some rank did not come, or cannot be reached.

    Example:
        >>> from torch import distributed
        >>> from pararealize.distributed.watchdog import Watch
        >>> watch = Watch(distributed.HashStore(), rank=0, who=["rank 0 (segment 1)"], timeout=30)
        >>> with watch.step():
        ...     watch.doing("g^1 forward")
        >>> watch.close()
    """

    def __init__(
        self,
        store: c10d.Store | dist.ProcessGroup,
        *,
        who: Sequence[str],
        rank: int | None = None,
        timeout: float = 30.0,
        peers: Sequence[int] | None = None,
    ) -> None:
        if isinstance(store, dist.ProcessGroup):
            rank = dist.get_rank(store)
            store = c10d._world.pg_map[store][1]
        if rank is None or not 0 <= rank < len(who) or not timeout > 0:
            raise DistributedError(
                f"rank is {rank}, timeout is {timeout}, with {len(who)} ranks described; "
                "pass a rank from 0 to their number less 1, and a time-out in seconds above 0"
            )
        self.rank, self.who, self.timeout = rank, list(who), timeout
        self._peers = range(len(who)) if peers is None else peers
        self._beat = min(0.5, timeout / 8)
        self._quiet = 4 * self._beat
        self._state = _State("")
        self._inside, self._step = False, 0
        self._sent: Counter[int] = Counter()
        self._took: Counter[int] = Counter()
        self._failure: Failure | None = None
        self._failed_at = 0.0
        self._failure_known = threading.Event()
        self._others_told = threading.Event()  # and the waits of this rank are ended
        self._failing = threading.Lock()  # the first failure stays
        self._closing = False
        self._left: dict[int, float] = {}  # ranks that closed in good order, and when
        self._pid = os.getpid()
        now = time.monotonic()
        # each rank's last heartbeat, and when it came
        self._heard = {peer: (Heartbeat(), now) for peer in range(len(who)) if peer != rank}
        self._connections: Connections | None = None
        if len(who) > 1:
            place = f"pararealize/watch/{' '.join(who)}"
            meeting = c10d.PrefixStore(f"{place}/{next(_meetings[place])}", store)
            self._connections = connect_ranks(meeting, rank, who, timeout)
            self._thread = threading.Thread(
                target=self._run, args=(self._connections,), name="pararealize-watch", daemon=True
            )
            self._thread.start()
            atexit.register(self._at_exit)

    # ------------------------------------------------------------------------------------------------ main thread

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a whole step: other ranks learn of an exception in it, and it raises what happened to them.

        Raises:
            RankError: another rank failed, before or during the step.
        """
        self._raise_known()
        self._step += 1
        self._state, self._inside = _State("the start of a step"), True
        try:
            yield
        except BaseException as error:
            self._leave(error)
            raise
        finally:
            self._inside = False
            self._state = _State("")

    def doing(self, what: str) -> None:
        """Say what this rank does from now on; no more than two assignments and a look at a flag."""
        self._state = _State(what)
        self._raise_known()

    def waiting(self, what: str, peer: int | None = None) -> None:
        """Say that this rank now waits for ``what`` of rank ``peer``, or of all where no other one is named."""
        rank = None if peer is None else self._peers[peer]
        self._state = _State(what, None if rank == self.rank else rank, waits=True)
        self._raise_known()

    def sent(self, peer: int) -> None:
        """Count a message to a rank; every one that it gets by :meth:`took` is to be counted."""
        self._sent[self._peers[peer]] += 1

    def took(self, peer: int) -> None:
        """Count a message that has come from a rank."""
        self._took[self._peers[peer]] += 1

    def close(self) -> None:
        """Leave in good order: the others are told, and do not take it for a death. May be called again."""
        if self._connections is None or self._closing or os.getpid() != self._pid:
            return
        self._closing = True
        atexit.unregister(self._at_exit)
        self._connections.wake()
        self._thread.join(_LAST_WORDS)

    def _at_exit(self) -> None:
        """The script is over: by an exception outside every step, or in good order."""
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if error is not None and not hasattr(sys, "ps1") and os.getpid() == self._pid:
            self._report(error)
        self.close()

    def _leave(self, error: BaseException) -> None:
        """Tell of an error that starts here; raise the cause of one that does not."""
        if isinstance(error, RankError | AgreedError) or self._connections is None:  # known to all
            return
        if _is_consequence(error, self._state):
            if not self._failure_known.wait(_GRACE):
                self._suspect(error)
            if self._failure is not None:
                self._others_told.wait(_LAST_WORDS)
                raise RankError(self._failure.message, self._failure.rank) from error
        if self._failure is None:
            self._report(error)
        elif str(error) not in self._failure.message:  # as it is where all ranks find the same fault at once
            error.add_note(f"besides, {self._failure.message}")

    def _suspect(self, error: BaseException) -> None:
        """A wait failed though nobody is known to have failed: out of time, or for one that has left."""
        statuses = self._statuses()
        late = "timed out" in f"{error} {error.__cause__}".lower()
        if late and not statuses[self.rank].waits:  # it did not say that it waits, but it did
            statuses[self.rank] = dataclasses.replace(statuses[self.rank], waits=True)
        if statuses[self.rank].waits:
            failure = find_culprit(statuses, self.rank, quiet=self._quiet)
            if late or statuses[failure.rank].left:
                self._fail(failure)

    def _report(self, error: BaseException) -> None:
        text = str(error).strip()
        message = f"{self.who[self.rank]} failed {self._statuses()[self.rank]}: {type(error).__name__}: {text[:500]}"
        self._fail(Failure(rank=self.rank, message=message.removesuffix(": ")))
        self._others_told.wait(_LAST_WORDS)

    def _raise_known(self) -> None:
        if self._failure is not None:
            self._others_told.wait(_LAST_WORDS)
            raise RankError(self._failure.message, self._failure.rank)

    # ------------------------------------------------------------------------------------------- shared by threads

    def _fail(self, failure: Failure) -> None:
        """Keep the first failure; the thread passes it on and ends the waits."""
        with self._failing:
            if self._failure is None:
                self._failed_at = time.monotonic()
                self._failure = failure
        self._failure_known.set()
        assert self._connections is not None
        self._connections.wake()

    def _heartbeat(self, now: float) -> Heartbeat:
        state = self._state
        return Heartbeat(
            doing=state.doing,
            seconds=now - state.since,
            waits=state.waits,
            peer=state.peer,
            step=self._step,
            sent=dict(self._sent),
            took=dict(self._took),
        )

    def _statuses(self) -> dict[int, RankStatus]:
        """How every rank was last heard; this rank as it is now."""
        now = time.monotonic()
        statuses = {self.rank: RankStatus.of(self._heartbeat(now), self.who[self.rank])}
        for rank, (heartbeat, heard_at) in list(self._heard.items()):
            quiet = now - heard_at
            statuses[rank] = RankStatus.of(heartbeat, self.who[rank], quiet=quiet, left=rank in self._left)
        return statuses

    # ---------------------------------------------------------------------------------------------- watching thread

    def _run(self, connections: Connections) -> None:
        try:
            self._attend(connections)
            connections.send(Farewell())
        except Exception as error:  # noqa: BLE001 (whatever it is: without a watch, the rank must not go on)
            name = type(error).__name__
            self._fail(Failure(rank=self.rank, message=f"{self.who[self.rank]}: its watch failed: {name}: {error}"))
            break_waits()
            self._others_told.set()
        connections.close()

    def _attend(self, connections: Connections) -> None:
        last = beat_at = time.monotonic()
        while not self._closing or (self._failure is not None and not self._others_told.is_set()):
            for rank, message in connections.poll(beat_at - time.monotonic()):
                self._hear(rank, message)
            now = time.monotonic()
            if now - last > self._quiet:  # this process itself stood still: the others' silence says nothing
                self._heard = {rank: (beat, min(now, at + now - last)) for rank, (beat, at) in self._heard.items()}
            last = now
            if self._failure is not None and not self._others_told.is_set():
                connections.send(self._failure)  # first: what follows makes this rank's main thread raise
                break_waits()
                self._others_told.set()
            if now >= beat_at:
                beat_at = now + self._beat
                state = self._state
                connections.send(self._heartbeat(now))
                self._judge(state, now)

    def _hear(self, rank: int, message: Message | Loss) -> None:
        if isinstance(message, Heartbeat):
            self._heard[rank] = message, time.monotonic()
        elif isinstance(message, Failure):
            self._fail(message)
        elif isinstance(message, Farewell):
            self._left[rank] = time.monotonic()
        elif rank not in self._left:
            status = self._statuses()[rank]
            self._fail(Failure(rank=rank, message=f"{status.who} {message.how}; it was last seen {status}"))

    def _judge(self, state: _State, now: float) -> None:
        """Every half second: has patience run out?"""
        if self._failure is not None:
            if self._inside:  # it may have begun a wait, or a group, that was not there before
                break_waits()
                if now - self._failed_at > self.timeout:
                    self._end_process()
            return
        waited = now - state.since if state.waits else 0.0
        awaited = self._left if state.peer is None else {state.peer} & self._left.keys()
        deserted = waited > _LEFT and any(now - self._left[rank] > _LEFT for rank in awaited)
        if waited >= self.timeout or deserted:
            self._fail(find_culprit(self._statuses(), self.rank, quiet=self._quiet))
        elif self._inside:
            for rank, status in self._statuses().items():
                if status.quiet >= self.timeout and not status.left:
                    self._fail(silent(rank, status))

    def _end_process(self) -> None:
        assert self._failure is not None
        print(  # noqa: T201 (nobody is left who could take an exception)
            f"{self.who[self.rank]} still hangs {self.timeout:g} s after a failure and ends here: "
            f"{self._failure.message}; its threads stand at",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a replaced stderr may be no file
            faulthandler.dump_traceback(sys.stderr)
        os._exit(1)


def _is_consequence(error: BaseException, state: _State) -> bool:
    """Whether an error may come from another rank's failure: it did in a wait, or speaks of communication."""
    if isinstance(error, dist.DistError | ConnectionError | TimeoutError):
        return True
    text = str(error).lower()
    if type(error) is RuntimeError and (state.waits or any(word in text for word in _COMMUNICATION)):
        return True
    return error.__cause__ is not None and _is_consequence(error.__cause__, state)  # as the runtime's own errors are
