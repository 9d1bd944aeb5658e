"""The ranks of a mesh, before they have a group -> a name that all of them share; the absent and the faulty are named.

Ranks meet over the store of the default group, by the mesh's ranks and a count of their meetings, and not by how many
groups a rank has made before: a rank may have made others, on other meshes. A rank that waited in vain takes its card
back and does not count the meeting, so that it is the same one when it comes again.

    pararealize/meeting/0-1-2/0/1     the card of rank 1 at the first meeting of the ranks 0, 1 and 2
    pararealize/rank/1                where rank 1 waits now; or why it called in vain, with no mesh to meet the others

A rank that waits for another one looks there as well. One that has called with no mesh at all, or that waits for this
rank at the meeting of another mesh, will not come: both raise at once, with both meshes.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from pararealize.errors import AgreedError, DistributedError

__all__ = ["DISTRIBUTE", "leave_fault", "meet"]

DISTRIBUTE = "distribute the network"
_POLL = 0.01  # seconds between two looks into the store
_LOOK = 10  # looks at the cards, for each one at what absent ranks do elsewhere
_meetings: Counter[str] = Counter()  # that took place, by the mesh's ranks
_seen: set[str] = set()  # faults of other ranks that this one has raised


def meet(
    ranks: Sequence[int],
    limit: timedelta,
    fault: str | None = None,
    *,
    facts: Mapping[str, str] | None = None,
    what: str = DISTRIBUTE,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Wait for all of these ranks to come here; each brings what is wrong with its own arguments, if anything is.

    Args:
        ranks: of the mesh, numbered as in the default group; this one is among them.
        limit: how long the others may take.
        fault: what all ranks are to raise.
        facts: what all have to have alike, by name.
        what: they come to do.
        check: is called in between; it may raise.

    Returns:
        The name of this meeting, the same on every rank, and another one for every meeting.

    Raises:
        AgreedError: the faults of those that have one, or facts that differ; on every rank.
        DistributedError: some rank did not come; it is named.
    """
    place = f"pararealize/meeting/{'-'.join(map(str, ranks))}"
    number, rank = _meetings[place], dist.get_rank()
    name = f"{place}/{number}"
    own_card = {"fault": fault, "facts": dict(facts or {})}
    try:
        store = c10d.PrefixStore(name, c10d._get_default_store())
        store.set(f"{rank}", json.dumps(own_card))
        _leave_word({} if fault else {"place": place, "number": number, "ranks": list(ranks)})
        shared_fault, word = fault and f"rank {rank}: {fault}", None
        cards: dict[int, dict[str, Any]] = {rank: own_card}
        until, looks = time.monotonic() + limit.total_seconds(), 0
        while not shared_fault and len(cards) < len(ranks):
            for other in ranks:
                if other not in cards and (card := _card_of(store, other)):
                    cards[other] = card
            shared_fault = _fault_of(cards, what)
            absent = [other for other in ranks if other not in cards]
            if shared_fault or not absent:
                break
            if looks % _LOOK == 0:
                word = _word_of(absent, place, number, ranks, what, lambda other: bool(_card_of(store, other)))
            if word is not None or time.monotonic() > until:
                store.set(f"{rank}", "null")
                _leave_word(word if word is not None and "at" in word else {})  # some may wait for this rank alone
                raise _absence(rank, ranks, absent, limit, what) if word is None else AgreedError(word["fault"])
            looks += 1
            check()
            time.sleep(_POLL)
        _meetings[place] += 1
        _leave_word({})
    except DistributedError:
        raise
    except RuntimeError as error:
        raise DistributedError(
            f"rank {rank}: the store was lost while the ranks {list(ranks)} were coming to {what} "
            f"({str(error).splitlines()[0]}); its host, mostly rank 0 or the launcher, has ended: see its own message"
        ) from error
    if shared_fault:
        raise AgreedError(shared_fault)
    return name


def leave_fault(fault: str) -> None:
    """Tell ranks that wait for this one that it has called with a fault, and with no mesh to meet them by."""
    _leave_word({"fault": f"rank {dist.get_rank()}: {fault}", "id": secrets.token_hex(8)})


def _leave_word(word: Mapping[str, Any]) -> None:
    c10d._get_default_store().set(f"pararealize/rank/{dist.get_rank()}", json.dumps(word))


def _card_of(store: c10d.Store, rank: int) -> dict[str, Any] | None:
    """What a rank has brought; ``None`` of one that has not come, or has taken it back."""
    card: dict[str, Any] | None = json.loads(store.get(f"{rank}")) if store.check([f"{rank}"]) else None
    return card


def _fault_of(cards: Mapping[int, Mapping[str, Any]], what: str) -> str:
    """What speaks against those that have come: their own faults, or facts that differ; empty where nothing does."""
    faults = [f"rank {rank}: {card['fault']}" for rank, card in sorted(cards.items()) if card["fault"]]
    if faults:
        return "; ".join(faults)
    for name in next(iter(cards.values()))["facts"]:
        ranks: dict[str, list[str]] = {}
        for rank, card in sorted(cards.items()):
            ranks.setdefault(card["facts"].get(name, "nothing"), []).append(str(rank))
        if len(ranks) > 1:
            values = ", ".join(f"{value} on rank {', '.join(some)}" for value, some in ranks.items())
            return f"the ranks do not agree on how to {what}: {name} is {values}; pass the same on every rank"
    return ""


def _word_of(
    absent: Sequence[int], place: str, number: int, ranks: Sequence[int], what: str, has_come: Callable[[int], bool]
) -> Mapping[str, Any] | None:
    """Why a rank will not come: it has a fault, or waits for this rank at a meeting of other ranks.

    What it says there is of no account where it has come here in between, and gone on.

    Returns:
        The fault, its number, and, where it is one of meetings, which ones.
    """
    store, rank = c10d._get_default_store(), dist.get_rank()
    for other in absent:
        key = f"pararealize/rank/{other}"
        word: dict[str, Any] = json.loads(store.get(key)) if store.check([key]) else {}
        elsewhere = word.get("place", place)
        waits_for_us = elsewhere != place and rank in word["ranks"] and _meetings[elsewhere] <= word["number"]
        fails = word.get("fault") and word["id"] not in _seen and [place, number] in word.get("at", [[place, number]])
        if not (fails or waits_for_us) or has_come(other):
            continue
        if fails:
            _seen.add(word["id"])
            return word
        fault = (
            f"the ranks do not agree on how to {what}: the mesh has the ranks {list(ranks)} on rank {rank}, "
            f"{word['ranks']} on rank {other}; pass the same mesh on all of its ranks, in the same order"
        )
        meetings = sorted([[place, number], [elsewhere, word["number"]]])
        _seen.add(str(meetings))  # the other one finds the same, in words of its own
        return {"fault": fault, "id": str(meetings), "at": meetings}
    return None


def _absence(rank: int, ranks: Sequence[int], absent: Sequence[int], limit: timedelta, what: str) -> DistributedError:
    who = " and ".join(f"rank {other}" for other in absent)
    return DistributedError(
        f"rank {rank} waited for the ranks {list(ranks)} to {what}, and {who} did not within "
        f"{limit.total_seconds():g} s; every rank of the mesh has to call distribute equally often"
    )
