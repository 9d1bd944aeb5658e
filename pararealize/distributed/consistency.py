"""Facts of each rank -> nothing, where all ranks have the same; an error that names ranks and values otherwise.

Ranks compare before they send each other anything that depends on it: a message of another shape, or one that the other
rank does not expect, would be taken for something else, or waited for until the time-out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import nn

from pararealize.distributed.checkpoint.collective import digest_of, gather_objects
from pararealize.distributed.watchdog.shared_calls import differences
from pararealize.errors import AgreedError, DistributedError

__all__ = ["FAULT", "agree", "agree_on_weights", "digests"]

FAULT = "fault"


def agree(
    group: dist.ProcessGroup,
    facts: Mapping[str, Any],
    *,
    what: str,
    remedy: str,
    timeout: timedelta,
    who: Callable[[int], str] = str,
) -> None:
    """Compare facts over a group: one exchange of objects.

    A fact called ``"fault"`` is what a rank found wrong by itself; all ranks raise it.

    Args:
        group: of the ranks, for objects.
        facts: by name; values that compare and print.
        what: what the ranks are about to do, such as ``"run a step"``.
        remedy: what to do where they differ.
        timeout: time limit of every collective of the group, for the error.
        who: what to call a rank of the group.

    Raises:
        AgreedError: on every rank, where a rank has a fault or facts differ.
        DistributedError: a rank did not answer.
    """
    try:
        everyone = gather_objects(dict(facts), group)
    except RuntimeError as error:
        raise DistributedError(
            f"rank {who(dist.get_rank(group))} waited for the others to begin to {what}, and not all of them did "
            f"within {timeout.total_seconds():g} s: {str(error).splitlines()[0]}; every rank has to call it equally "
            "often, with inputs of the same shapes, types and mode"
        ) from error
    faults = [f"rank {who(i)}: {its_facts[FAULT]}" for i, its_facts in enumerate(everyone) if its_facts.get(FAULT)]
    if faults:
        raise AgreedError("; ".join(faults))
    differing = list(differences(dict(enumerate(everyone)), who))
    if differing:
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise AgreedError(f"the ranks do not agree on how to {what}: {'; '.join(differing[:4])}{more}; {remedy}")


def agree_on_weights(
    group: dist.ProcessGroup, module: nn.Module, *, what: str, timeout: timedelta, waiting: Callable[[], None]
) -> None:
    """Compare parameters and buffers, by their digests, as :func:`agree` does facts.

    ``waiting`` is called when this rank has its own digests: from then on it waits for the others.
    """
    facts = {f"the digest of {name}": digest for name, digest in digests(module).items()}
    waiting()
    remedy = (
        "call torch.manual_seed(...) with one seed on all ranks before the model is made, or load one checkpoint on all"
    )
    agree(group, facts, what=what, remedy=remedy, timeout=timeout)


def digests(module: nn.Module) -> dict[str, str]:
    """A digest of each parameter and buffer that has memory, by name."""
    digests_by_name = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not tensor.is_meta:
            digests_by_name[name] = digest_of(tensor)
    return digests_by_name
