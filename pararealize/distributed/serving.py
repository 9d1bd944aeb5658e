"""A rank's stage -> requests of rank 0 that all ranks compute together, and their answers on rank 0.

rank 0       a queue of requests ──> one thread, request after request ──> header, inputs ─┐
the others   wait for a header                                              <──────────────┘
all          stage(inputs)                                                  every rank its segments
last rank    the output ──> rank 0 ──> whoever asked

A header says what comes: a request (and with inputs of which form), the end, or nothing yet. Rank 0 sends the last one
several times within a time-out, so that waiting for requests is told from a rank that hangs; what happens to a rank in
the meantime is known to all by the watchdog, as in a step. Inputs and outputs go over gloo, by way of the CPU's memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch

from pararealize.errors import AgreedError, DistributedError, RefusedCallError
from pararealize.tracing.containers import on_device, tensors_of

from .messages.formats import TensorFormat, ValueFormat, is_integral, sending_fault

if TYPE_CHECKING:
    from .rank_setup import RankSetup

__all__ = ["Server", "serve_requests"]

NOTHING, REQUEST, END = 0, 1, 2  # what a header says
NEW = -1  # the number of a form that has not been sent before
NO_THREAD = -1  # none has this identity
LONGEST_BEAT = 1.0  # seconds between headers of rank 0 that has no request
MOST_FORMS = 1024  # of inputs or outputs, that are remembered
CPU = torch.device("cpu")

Forward = Callable[..., Any]
Trial = Callable[..., None]


class _Answer(Future[Any]):
    """An answer; the thread that computes, in which its callbacks run, cannot wait for it."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def result(self, timeout: float | None = None) -> Any:
        self._check_thread()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check_thread()
        return super().exception(timeout)

    def _check_thread(self) -> None:
        if not self.done():
            self._server.check_thread("result()")


class Server:
    """Takes requests on rank 0, from any thread, and gives their answers; made by ``stage.serve()``.

    Requests are computed one after the other, in the order in which they came. Their batches may be of any sizes that
    the network takes. Outside of the thread that computes, nothing else may be called on the stage meanwhile.

    Attributes:
        answered: how many requests have been answered.
    """

    def __init__(self, setup: RankSetup, forward: Forward, trial: Trial, beat: float) -> None:
        self.answered = 0
        self._setup, self._forward, self._trial, self._beat = setup, forward, trial, beat
        self._tried: set[tuple[Any, ...]] = set()  # inputs by names, sizes, types and devices
        self._requests: queue.SimpleQueue[tuple[Future[Any], tuple[Any, ...], dict[str, Any]] | None]
        self._requests = queue.SimpleQueue()
        self._exchange = _Exchange(setup)
        self._gate = threading.Lock()  # whoever adds a request knows that the thread will still see it
        self._is_closed = False
        self._failure: BaseException | None = None
        self._unanswered: Future[Any] | None = None
        kind = setup.channel.device.type
        self._autocast = torch.autocast(  # the caller's, which is of its thread; the other ranks compute in theirs
            kind,
            torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=torch.is_autocast_cache_enabled(),
        )
        self._thread = threading.Thread(target=self._run, name="pararealize-server", daemon=True)
        self._thread.start()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output for these inputs, on the CPU.

        Raises:
            RefusedCallError: the network does not take them; the server goes on.
            DistributedError: a rank failed or hung, or the server is closed; or it is called in the thread that
                computes, as by a callback of a future.
        """
        self.check_thread("the server")
        return self.submit(*args, **kwargs).result()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Put a request into the queue; ``result()`` of what is given waits for the answer.

        Its callbacks run in the thread that computes, before the next request. They may submit others, and wait for
        none.
        """
        answer = _Answer(self)
        with self._gate:
            if self._failure is not None:
                raise DistributedError(f"the server has failed: {self._failure}") from self._failure
            if self._is_closed:
                raise DistributedError("the server is closed: the block of stage.serve() is over; enter it anew")
            self._requests.put((answer, args, kwargs))
        return answer

    def close(self) -> None:
        """Answer what has been asked, and let the other ranks go. May be called again.

        Raises:
            DistributedError: a rank failed or hung; or it is called in the thread that computes.
        """
        self.check_thread("close()")
        with self._gate:
            was_closed, self._is_closed = self._is_closed, True
            if not was_closed:
                self._requests.put(None)
        self._thread.join()
        if self._failure is not None and not was_closed:
            raise self._failure

    def check_thread(self, call: str) -> None:
        """Refuse a call that waits for the thread that computes, in that thread.

        Raises:
            DistributedError: it is called there.
        """
        if threading.current_thread() is self._thread:
            raise DistributedError(
                f"{call} was called in the thread that computes requests, as by a callback of a future, and would wait "
                "for itself; call server.submit(...) there and wait elsewhere"
            )

    def _run(self) -> None:
        """The thread that computes: for every request, or where there is none, a header."""
        channel = self._setup.channel
        channel.serving_thread = threading.get_ident()
        try:
            with self._setup.call("serve"), self._autocast:
                while self._answer_next():
                    pass
        except BaseException as error:  # noqa: BLE001 - whoever asks, or closes, raises it
            self._fail(error)
        finally:
            channel.serving_thread = None

    def _answer_next(self) -> bool:
        """Answer one request, or say that there is none; whether there may be more."""
        self._setup.watch.doing("waiting for requests")
        try:
            asked = self._requests.get(timeout=self._beat)
        except queue.Empty:
            self._exchange.send_header(NOTHING)
            return True
        if asked is None:
            self._exchange.send_header(END)
            return False
        answer, args, kwargs = asked
        if not answer.set_running_or_notify_cancel():
            return True
        try:
            request = self._checked(args, kwargs)  # what is refused here concerns no other rank
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self._settle(answer.set_exception, error)
            return True
        try:
            self._exchange.send_request(request)
            output = self._forward(*args, **kwargs)
            output = self._exchange.receive_answer(output)
        except AgreedError as error:  # all ranks have refused it, and go on
            self._settle(answer.set_exception, error)
        except BaseException:
            self._unanswered = answer  # what is raised here may be a consequence: the cause comes with the call's end
            raise
        else:
            self.answered += 1
            self._settle(answer.set_result, output)
        return True

    def _settle(self, settle: Callable[[Any], None], result: Any) -> None:
        """Settle a future; what its callbacks call on the stage is refused as in any other thread."""
        self._setup.channel.serving_thread = NO_THREAD
        settle(result)
        self._setup.channel.serving_thread = threading.get_ident()

    def _checked(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Packed:
        """A request as it is sent; inputs that the network does not take are refused before any rank hears of them.

        Sizes and arguments are compared with what was recorded. Inputs of sizes and types that have not come yet go
        through what this rank computes first. Integers, such as tokens beyond a table, always do: as far as its stem,
        and its first segment where that reads integers.

        Raises:
            RefusedCallError: the network fails with them.
            ExampleError: the arguments are not those of the network.
            GuardError: they have sizes that it does not take.
        """
        tensors = self._setup.partition.conditions.check(args, kwargs)
        if fault := sending_fault(tensors):
            raise RefusedCallError(fault)
        form = tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors.items())
        is_new = form not in self._tried
        try:
            if is_new or any(map(is_integral, tensors.values())):
                self._trial(tensors, whole=is_new)
            packed = _Packed.of((args, kwargs))
        except Exception as error:
            given = ", ".join(f"{name} {tuple(one.shape)} {one.dtype} on {one.device}" for name, one in tensors.items())
            raise RefusedCallError(
                f"the network fails with these inputs ({given}): {type(error).__name__}: {error}; pass values, types "
                "and devices that the original takes"
            ) from error
        if len(self._tried) >= MOST_FORMS:
            self._tried.clear()
        self._tried.add(form)
        return packed

    def _fail(self, error: BaseException) -> None:
        with self._gate:
            self._failure = error
        if self._unanswered is not None:
            self._unanswered.set_exception(error)
        with contextlib.suppress(queue.Empty):
            while True:
                request = self._requests.get_nowait()
                if request is not None and request[0].set_running_or_notify_cancel():
                    request[0].set_exception(DistributedError(f"the server has failed: {error}"))


class _Forms:
    """Forms of values that the ranks on both sides of a message have seen, by numbers that both count alike.

    A form is known by all that would be sent of it. So one whose plain objects hold tensors of their own is a new one
    whenever these have changed.
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._formats: list[ValueFormat] = []

    def number(self, key: bytes) -> int:
        """Of a form that is to be sent; ``NEW`` where it has not been sent yet, and is remembered now."""
        if (number := self._numbers.get(key)) is not None:
            return number
        if len(self._numbers) >= MOST_FORMS:
            self._numbers.clear()
        self._numbers[key] = len(self._numbers)
        return NEW

    def learn(self, form: ValueFormat) -> ValueFormat:
        """Remember a form that came as a new one."""
        if len(self._formats) >= MOST_FORMS:
            self._formats.clear()
        self._formats.append(form)
        return form

    def known(self, number: int) -> ValueFormat:
        """The form of that number."""
        return self._formats[number]


@dataclasses.dataclass(frozen=True, slots=True)
class _Packed:
    """A value as it is sent: its form, the same as bytes, and its tensors on the CPU, packed as the form says."""

    form: ValueFormat
    key: bytes
    tensors: list[torch.Tensor]

    @classmethod
    def of(cls, value: Any) -> _Packed:
        """That of a value."""
        form = ValueFormat.of(value)
        tensors = [TensorFormat.of(tensor).packed(tensor.detach().cpu()) for tensor in tensors_of(value)]
        return cls(form, pickle.dumps(form), tensors)


class _Exchange:
    """Requests from rank 0 to all, answers from the last rank to rank 0; a form is described once."""

    def __init__(self, setup: RankSetup) -> None:
        self._channel, self._last = setup.channel, setup.partition.ranks - 1
        self._requests, self._answers = _Forms(), _Forms()

    def send_header(self, kind: int, number: int = 0) -> None:
        """Say what comes next."""
        self._channel.hand_round("a header", torch.tensor([kind, number]), 0)

    def send_request(self, request: _Packed) -> None:
        """Give a request to all ranks."""
        number = self._requests.number(request.key)
        self.send_header(REQUEST, number)
        if number == NEW:
            self._channel.hand_round_object("the form of a request", request.form, 0)
        for tensor in request.tensors:
            self._channel.hand_round("a request", tensor, 0)

    def receive_request(self) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
        """The next request; ``None`` at the end."""
        kind = NOTHING
        while kind == NOTHING:
            header = torch.zeros(2, dtype=torch.int64)
            self._channel.hand_round("the next request", header, 0)
            kind, number = header.tolist()
        if kind == END:
            return None
        if number == NEW:
            form = self._requests.learn(self._channel.hand_round_object("the form of a request", None, 0))
        else:
            form = self._requests.known(number)
        tensors = [one.empty(CPU) for one in form.tensors]
        for tensor in tensors:
            self._channel.hand_round("a request", tensor, 0)
        args, kwargs = form.filled(tensors)
        return args, kwargs

    def send_answer(self, output: Any) -> None:
        """On the last rank: give the output to rank 0, where that is another one."""
        if self._last == 0:
            return
        answer = _Packed.of(output)
        number = self._answers.number(answer.key)
        self._channel.hand_over("an answer", torch.tensor([number]), 0)
        if number == NEW:
            self._channel.send_object("the form of an answer", answer.form, 0)
        for tensor in answer.tensors:
            self._channel.hand_over("an answer", tensor, 0)

    def receive_answer(self, output: Any) -> Any:
        """The output on rank 0, which has it already where it is the last one, too."""
        if self._last == 0:
            return on_device(output, CPU)
        number = torch.zeros(1, dtype=torch.int64)
        self._channel.take_over("the answer", number, self._last)
        if int(number) == NEW:
            form = self._answers.learn(self._channel.receive_object("the form of an answer", self._last))
        else:
            form = self._answers.known(int(number))
        tensors = [one.empty(CPU) for one in form.tensors]
        for tensor in tensors:
            self._channel.take_over("the answer", tensor, self._last)
        return form.filled(tensors)


@contextlib.contextmanager
def serve_requests(setup: RankSetup, forward: Forward, trial: Trial) -> Iterator[Server | None]:
    """What ``stage.serve()`` does, once all ranks have come to it.

    Args:
        setup: of the rank.
        forward: the stage's own.
        trial: runs what the first rank makes of a call's tensors by itself.

    Yields:
        The server on rank 0, as long as the block lasts; ``None`` elsewhere, when it is over.
    """
    channel = setup.channel
    if setup.rank != 0:
        _follow(setup, forward)
        yield None
        return
    server = Server(setup, forward, trial, beat=min(LONGEST_BEAT, channel.timeout.total_seconds() / 8))
    try:
        yield server
    except BaseException:
        with contextlib.suppress(DistributedError):  # the block's own error, or this one, is on its way
            server.close()
        raise
    server.close()


def _follow(setup: RankSetup, forward: Forward) -> None:
    """Compute request after request with the other ranks, until rank 0 ends it."""
    exchange = _Exchange(setup)
    with setup.call("serve"):
        while (request := exchange.receive_request()) is not None:
            args, kwargs = request
            try:
                output = forward(*args, **kwargs)
            except AgreedError:
                continue
            if setup.owns_head:
                exchange.send_answer(output)
