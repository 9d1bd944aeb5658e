"""What this rank is doing -> an error on every rank that names the one at fault, soon after anything goes wrong.

Each rank has a thread that tells the others twice a second what its rank is doing (heartbeat.py, connections.py):

    what happens to a rank        how the others know                                    after
    it raises                     it says so before it unwinds                           milliseconds
    it dies, by any means         its connections close, its process is gone             milliseconds
    it hangs in Python            it lives, but others wait for it (diagnosis.py)        timeout
    it is stopped, hangs in C     no heartbeats                                          timeout
    its machine vanishes          no heartbeats                                          timeout
    it leaves with a status       it says so, or its process does (exits.py)             milliseconds
    it calls what others do not   it announces what it calls (shared_calls.py)           milliseconds

What may be judged is only what a rank has said itself and how long it has been silent, by the clock of the one that
judges: a busy rank is never at fault, however long it takes, until another one has waited for it for ``timeout``.

To know is not enough: the main thread of a survivor stands in a wait of gloo that nothing can interrupt, for up to its
own time-out. So the watching thread ends the waits of its rank (abort.py). The main thread leaves its wait with
gloo's error, and :meth:`Watch.step` gives it the true one. Over NCCL it stands in no wait of torch's: the thread looks
itself what the device waits for (open_works.py), and a call ends by waiting for the device with an eye on the failure.

An error of communication is a consequence: it is held back for a moment until the cause has come. Any other error is
a cause: it is told to the others and passes on unchanged. The first failure that a rank learns of is the one it keeps
and passes on, so a rank that fails because its neighbour did is not blamed.

A rank that comes out of a hang finds its own name in the error. One that does not has another ``timeout`` seconds;
then it writes where it hangs to stderr and ends its process, so that a job does not stand for ever where no launcher
ends the rest. That holds between steps too; there, the main thread's frames show a barrier of the user's (position.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from pararealize.errors import AgreedError, DisagreementError, DistributedError, RankError

from .abort import break_waits, end_process
from .call_gaps import when_in_no_call
from .connections import Connections
from .current_call import CurrentCall, RankState
from .diagnosis import RankStatus, fault_of, find_culprit, is_consequence, silent
from .exits import SCRIPT, ExitHook
from .heartbeat import Announcement, Failure, Farewell, Heartbeat, Loss, Message
from .open_works import OpenWorks
from .position import Position
from .rendezvous import connect_ranks
from .shared_calls import CallsByName

__all__ = ["Watch"]

_GRACE = 2.0  # seconds that an error of communication waits for its cause
_LAST_WORDS = 1.0  # seconds that a rank's last messages may take
_LEFT = 1.0  # seconds in which what a rank sent before it left must have come
_ENDING = 5.0  # seconds in which the process of a script that is over ends, and tells its status
_LEAVING = 10.0  # seconds in which the end of a process is the end of the script that has left
_meetings: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)


class Watch:
    """Ends every rank, with an error that names the one at fault, when one raises, dies or hangs.

    All ranks make it at about the same time. It costs one thread, one connection to every other rank, and a message of
    some hundred bytes to each of them every half second; the main thread sends announcements.

    Args:
        store: where the ranks meet: a store that all of them share, or a process group of just these ranks. It is not
            used any more afterwards, so it does not matter whose process hosts it.
        rank: this rank, counted as ``who`` is; a group knows it.
        who: a description of every rank, such as ``"rank 2 (segment 3: layer2.4 to layer3.1)"``.
        timeout: seconds after which a wait means that the other side hangs, and that ranks have to come here.
        peers: which ranks callers of :meth:`waiting` mean by 0, 1, …, where these count otherwise: those of one
            replica's group, for instance, in a watch over all replicas.
        meeting: a name that all ranks share and no other watch has; made of ``who`` and a count when left out.

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
        meeting: str | None = None,
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
        self._current = CurrentCall()
        self._position = Position()
        self.open_works = OpenWorks()  # what the device of this rank waits for, while the host goes on
        self._failure: Failure | None = None
        self._failed_at = 0.0
        self._failure_known = threading.Event()
        self._others_told = threading.Event()  # and the waits of this rank are ended
        self._failing = threading.Lock()  # the first failure stays
        self._raised = False  # whether the main thread knows of it
        self._closing = False
        self.announcements = CallsByName(self, lambda *_: None, self._fail)
        self._left: dict[int, float] = {}  # ranks that closed in good order, and when
        self._pid = os.getpid()
        now = time.monotonic()
        # each rank's last heartbeat, and when it came
        self._heard = {peer: (Heartbeat(), now) for peer in range(len(who)) if peer != rank}
        self._connections: Connections | None = None
        if len(who) > 1:
            place = f"pararealize/watch/{' '.join(who)}"
            meeting = meeting or f"{place}/{next(_meetings[place])}"
            self._connections = connect_ranks(c10d.PrefixStore(meeting, store), rank, who, timeout)
            self.announcements = CallsByName(self, self._connections.send_to, self._fail)
            self._thread = threading.Thread(
                target=self._run, args=(self._connections,), name="pararealize-watch", daemon=True
            )
            self._thread.start()
            self._exit_hook = ExitHook(self._at_exit)

    # ------------------------------------------------------------------------------------------------ main thread

    def describe(self, who: Sequence[str]) -> None:
        """Call the ranks so from now on."""
        self.who = list(who)

    @contextlib.contextmanager
    def step(self, call: str = "a step") -> Iterator[None]:
        """Around a whole step, or whatever else all ranks call: it raises what happened to other ranks.

        They learn of an exception in it. Calls may be made within calls.

        Args:
            call: its name, for errors.

        Raises:
            RankError: another rank failed, before or during the step.
            DistributedError: the watch has been closed, or belongs to the process that this one was forked from.
        """
        if os.getpid() != self._pid:
            raise DistributedError(
                f"process {os.getpid()} was forked from {self.who[self.rank]} (process {self._pid}), and has none of "
                "its connections to the other ranks; make calls of the network in that process alone, and in a child "
                "only what needs no other rank, such as loading data"
            )
        self.raise_known(earlier=self._raised)
        if self._closing:
            raise DistributedError(
                f"{self.who[self.rank]} has closed its connections to the other ranks; distribute the network anew, on "
                "all ranks, for further calls"
            )
        SCRIPT.goes_on()
        with self._current.during(call):
            try:
                yield
            except BaseException as error:
                self._leave(error)
                raise

    @property
    def is_in_call(self) -> bool:
        """Whether this rank is in a call."""
        return self._current.depth > 0

    def between_calls(self, work: Callable[[], None]) -> None:
        """Do some work in the thread that makes this rank's calls, between two of them; not in a forked process."""
        if os.getpid() == self._pid:
            when_in_no_call(self._current.thread.identity, work)

    def doing(self, what: str) -> None:
        """Say what this rank does from now on; no more than two assignments and a look at a flag."""
        self._current.state = RankState(what)
        self.raise_known()

    def waiting(self, what: str, peer: int | None = None) -> None:
        """Say that this rank now waits for ``what`` of rank ``peer``, or of all where no other one is named."""
        rank = self.rank if peer is None else self._peers[peer]
        self._current.state = RankState(what, None if rank == self.rank else rank, waits=True)
        self.raise_known()

    def wait_on_device(self, work: dist.Work, name: str, peer: int, *, counts: bool) -> None:
        """Say that the device waits for ``name`` of rank ``peer``, a message that counts as taken when it has come."""
        rank = self._peers[peer]
        done = (lambda: self.took(peer)) if counts else (lambda: None)
        self.open_works.add(work, name, None if rank == self.rank else rank, done)

    def sent(self, peer: int) -> None:
        """Count a message to a rank; every one that it gets by :meth:`took` is to be counted."""
        self._current.sent[self._peers[peer]] += 1

    def took(self, peer: int) -> None:
        """Count a message that has come from a rank."""
        self._current.took[self._peers[peer]] += 1

    def close(self) -> None:
        """Leave in good order: the others are told, and do not take it for a death. May be called again.

        Where ``sys.exit`` was called with a status before, it is no good order, and they are told that.
        """
        if self._closing or os.getpid() != self._pid:
            return
        if self._connections is None:
            self._closing = True
            return
        if words := SCRIPT.bad_exit():
            self._report(words)
        self._closing = True
        self._exit_hook.cancel()
        self._connections.wake()
        self._thread.join(_LAST_WORDS)

    def _at_exit(self) -> None:
        """The script is over: by an exception outside every step, with a status, or in good order."""
        error = SCRIPT.uncaught_error()
        if error is not None and not self._closing and os.getpid() == self._pid:
            try:
                self._report(error) if isinstance(error, AgreedError) else self._leave(error)
            except DistributedError as cause:  # gloo's own error, of a wait outside of every step, does not name it
                print(f"{type(cause).__name__}: {cause}", file=sys.stderr, flush=True)  # noqa: T201
        self.close()

    def _leave(self, error: BaseException) -> None:
        """Tell of an error that starts here; raise the cause of one that does not."""
        known = isinstance(error, RankError | AgreedError | DisagreementError) or hasattr(error, "known_to_all")
        if known or self._connections is None:
            return
        if is_consequence(error, waits=self._current.state.waits):
            self._current.state = dataclasses.replace(self._current.state, waits=True)  # it did, if it has not said so
            if not self._failure_known.wait(_GRACE):
                self._suspect(error)
            if self._failure is not None:
                self.raise_known(error)
        if self._failure is None:
            self._report(error)
        elif self._failure.rank != self.rank and str(error) not in self._failure.message:  # all may find one fault
            error.add_note(f"besides, {self._failure.message}")
        self._raised = True

    def _suspect(self, error: BaseException) -> None:
        """A wait failed though nobody is known to have failed: out of time, or for one that has left."""
        statuses = self._statuses()
        late = "timed out" in f"{error} {error.__cause__}".lower()
        if late and not statuses[self.rank].waits:  # it did not say that it waits, but it did
            statuses[self.rank] = dataclasses.replace(statuses[self.rank], waits=True)
        if statuses[self.rank].waits:
            failure = find_culprit(statuses, self.rank, quiet=self._quiet)
            if late or (failure.rank is not None and statuses[failure.rank].left):
                self._fail(failure)

    def _report(self, error: BaseException | str) -> None:
        """Tell of an error that starts here, or in words of how the script ends."""
        self._fail(fault_of(self.rank, self._statuses()[self.rank], error))
        self._raised = True
        self._others_told.wait(_LAST_WORDS)

    def raise_known(self, error: BaseException | None = None, *, earlier: bool = False) -> None:
        """Raise the failure that this rank knows of; ``error`` came of it, or a call has raised it ``earlier``."""
        if self._failure is not None:
            self._raised = True
            self._others_told.wait(_LAST_WORDS)
            raise self._failure.error(earlier=earlier) from error

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

    def _heartbeat(self, now: float, *, waits_for: float = 0.0) -> Heartbeat:
        """What this rank does, by what it has said, where its main thread stands, and what its device waits for."""
        open_work = self.open_works.first()
        return self._current.heartbeat(now, place=self._position.text, waits_for=waits_for, open_work=open_work)

    def _statuses(self, now: float | None = None) -> dict[int, RankStatus]:
        """How every rank was last heard; this rank as it is now."""
        now = time.monotonic() if now is None else now
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
                continue  # and what they have said meanwhile is read before anybody is judged: it may be of this rank
            last = now
            if self._failure is not None and not self._others_told.is_set():
                connections.send(self._failure)  # first: what follows makes this rank's main thread raise
                break_waits()
                self._others_told.set()
            if now >= beat_at:
                beat_at = now + self._beat
                if now - self._current.state.since < 2 * self._beat:  # a thread that goes on is left alone
                    self._position.forget()
                else:
                    self._position.look(self._current.thread)
                heartbeat = self._heartbeat(now, waits_for=self._position.seconds)
                connections.send(heartbeat)
                self._judge(connections, heartbeat, now)

    def _hear(self, rank: int, message: Message | Loss) -> None:
        now = time.monotonic()
        if isinstance(message, Heartbeat):
            self._heard[rank] = message, now
        elif isinstance(message, Announcement):
            self.announcements.hear(rank, message)
        elif isinstance(message, Failure):
            self._fail(message)
        elif isinstance(message, Farewell):
            self._left[rank] = now
            self.announcements.leave(rank)
        elif rank not in self._left:
            status = self._statuses()[rank]
            self._fail(Failure(rank=rank, message=f"{status.who} {message.how}; it was last seen {status}"))
        elif message.status and now - self._left[rank] < _LEAVING:
            text = f"left with exit status {message.status}; it was last seen {self._statuses()[rank]}"
            self._fail(Failure(rank=rank, message=f"{self.who[rank]} {text}"))

    def _judge(self, connections: Connections, heartbeat: Heartbeat, now: float) -> None:
        """Every half second: has patience run out?

        By the clock as it was when messages were last taken: where this process is stopped between that and here, the
        others have said meanwhile what this rank has not read.
        """
        if self._failure is not None:
            if self._current.depth:  # it may have begun a wait, or a group, that was not there before
                break_waits()
            hangs = self._current.depth or (self._failure.rank == self.rank and not self._raised)
            if hangs and now - self._failed_at > self.timeout:
                reason = f"still hangs {self.timeout:g} s after a failure and ends here: {self._failure.message}"
                end_process(f"{self.who[self.rank]} {reason}")
            return
        waited = heartbeat.seconds if heartbeat.waits else 0.0
        awaited = self._left if heartbeat.peer is None else {heartbeat.peer} & self._left.keys()
        gone = (rank for rank in awaited if not connections.is_ending(rank) or now - self._left[rank] > _ENDING)
        deserted = waited > _LEFT and any(now - self._left[rank] > _LEFT for rank in gone)
        if waited >= self.timeout or deserted:
            statuses = {**self._statuses(now), self.rank: RankStatus.of(heartbeat, self.who[self.rank])}
            failure = find_culprit(statuses, self.rank, quiet=self._quiet)
            # all of them in collective calls of the user's own may wait for processes that nobody watches
            culprit = None if failure.rank is None else statuses[failure.rank]
            if self._current.depth or (culprit and (culprit.left or culprit.quiet > self._quiet or not culprit.waits)):
                self._fail(failure)
        elif self._current.depth:
            for rank, status in self._statuses(now).items():
                if status.quiet >= self.timeout and not status.left:
                    self._fail(silent(rank, status))
