"""What happens when a rank raises, dies or hangs: every rank ends, soon, with an error that names the one at fault.

In reading order::

    watchdog       what this rank does and what it hears -> an error on every rank: :class:`Watch`
    shared_calls   what each rank calls, by number -> the same on all, or both values
    samples        a tensor -> some of its numbers, which tell one batch from another
    current_call   the call that this rank is in, and what it does there -> a heartbeat
    open_works     what a device waits for while the host goes on -> the first of it that has not come
    heartbeat      what ranks tell each other twice a second, and when one fails
    connections    one connection to every other rank: these messages go over it, and a death shows
    rendezvous     how the ranks find each other once
    diagnosis      what every rank was last heard to do -> the rank that the others wait for
    position       a thread -> where its code stands, and whether that is in a wait
    call_gaps      work that has to wait until a thread is in no call
    exits          the end of the script -> what is wrong with it
    abort          waits of gloo and NCCL -> errors, at once
"""

from .watchdog import Watch

__all__ = ["Watch"]
