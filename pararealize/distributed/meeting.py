"""The ranks of a mesh, before they have a group -> a name that all of them share; the absent and the faulty are named.

Ranks meet over the store of the default group, by the mesh's ranks and a count of their meetings, and not by how many
groups a rank has made before: a rank may have made others, on other meshes. A rank that waited in vain has left its
word in the store and does not count the meeting, so that those who come later, and this rank when it comes again, are
at the same one.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from pararealize.errors import AgreedError, DistributedError

__all__ = ["meet"]

_POLL = 0.01  # seconds between two looks into the store
_meetings: Counter[str] = Counter()  # that took place, by the mesh's ranks


def meet(ranks: Sequence[int], limit: timedelta, fault: str | None = None) -> str:
    """Wait for all of these ranks to come here; each brings what is wrong with its own arguments, if anything is.

    Args:
        ranks: of the mesh, numbered as in the default group; this one is among them.
        limit: how long the others may take.
        fault: what all ranks are to raise.

    Returns:
        The name of this meeting, the same on every rank, and another one for every meeting.

    Raises:
        AgreedError: on every rank, with the faults of those that have one.
        DistributedError: some rank did not come; it is named.
    """
    place = f"pararealize/meeting/{'-'.join(map(str, ranks))}"
    name = f"{place}/{_meetings[place]}"
    store = c10d.PrefixStore(name, c10d._get_default_store())
    rank, others = dist.get_rank(), [other for other in ranks if other != dist.get_rank()]
    until = time.monotonic() + limit.total_seconds()
    try:
        store.set(f"{rank}", json.dumps(fault))
        while not store.check([f"{other}" for other in others]):
            if time.monotonic() > until:
                absent = [other for other in others if not store.check([f"{other}"])]
                raise _absence(rank, ranks, absent, limit)
            time.sleep(_POLL)
        faults = {other: json.loads(store.get(f"{other}")) for other in ranks}
    except DistributedError:
        raise
    except RuntimeError as error:
        raise DistributedError(
            f"rank {rank}: the store was lost while the ranks {list(ranks)} were coming to distribute the network "
            f"({str(error).splitlines()[0]}); its host, mostly rank 0 or the launcher, has ended: see its own message"
        ) from error
    _meetings[place] += 1
    if any(faults.values()):
        raise AgreedError("; ".join(f"rank {other}: {text}" for other, text in faults.items() if text))
    return name


def _absence(rank: int, ranks: Sequence[int], absent: Sequence[int], limit: timedelta) -> DistributedError:
    who = " and ".join(f"rank {other}" for other in absent)
    return DistributedError(
        f"rank {rank} waited for the ranks {list(ranks)} to distribute the network, and {who} did not within "
        f"{limit.total_seconds():g} s; every rank of the mesh has to call distribute equally often"
    )
