"""What ranks hold together -> files that do not depend on how many ranks wrote them, and back.

In reading order::

    state         the parts of all ranks -> one state dict, one file
    sharded       the parts of all ranks -> one folder, a file a rank
    optimizer     the optimisers of all ranks -> one state by names of parameters
    collective    work and tensors of each rank -> one outcome on all of them
"""

from .collective import collect, facts_of_all, first_replica, group_of, is_first, together
from .optimizer import gather_optimizer_state, load_optimizer_state, parameter_names
from .sharded import load_sharded, save_sharded
from .state import gather_state_dict, load_state, save_state

__all__ = [
    "collect",
    "facts_of_all",
    "first_replica",
    "gather_optimizer_state",
    "gather_state_dict",
    "group_of",
    "is_first",
    "load_optimizer_state",
    "load_sharded",
    "load_state",
    "parameter_names",
    "save_sharded",
    "save_state",
    "together",
]
