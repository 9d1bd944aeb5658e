"""What ranks hold together -> files that do not depend on how many ranks wrote them, and back.

In reading order::

    tensor_file   tensors by name -> one file with a digest of each, and back
    weights_plan  a network -> what of its plan the weights of adapters and coarse blocks depend on
    state         the parts of all ranks -> one state dict, one file
    sharded       the parts of all ranks -> one folder, a file a rank
    optimizer     the optimisers of all ranks -> one state by names of parameters
    collective    work and tensors of each rank -> one outcome on all of them
"""

from .optimizer import gather_optimizer_state, load_optimizer_state
from .sharded import load_sharded, save_sharded
from .state import gather_state_dict, load_state, save_state

__all__ = [
    "gather_optimizer_state",
    "gather_state_dict",
    "load_optimizer_state",
    "load_sharded",
    "load_state",
    "save_sharded",
    "save_state",
]
