"""nn.Module and example inputs -> Capture: the network as one fx graph over its own modules, with shapes and names.

In reading order:

    example       what the user gives as example inputs, by the names of the forward's parameters
    input_checks  tensors and names that a forward pass can be recorded with
    containers    nested values: their items, how code reads each, copies with others
    argument_form  what stands in one argument: where its tensors are, what else is fixed
    call_signature  how calls of a converted network look: arguments, nesting, what is fixed
    front_end     capture(): record twice, merge, check; which modules become one opaque node
    guards        conditions on inputs under which a recording holds
    captured      Capture, what comes out
    model_twin    a model -> the same modules with the same Python state over other tensors
    fake_copy     the copy of the model that is recorded, on tensors without memory
    fake_logs     what torch logs of fake tensors, kept off stderr meanwhile
    tracer        one forward pass on fake tensors -> its calls, as a graph
    node_table    which node holds the present value of each tensor of the pass
    python_state  what a model holds besides its own tensors, and which of it a pass changed
    state_watch   whether one recording changed any: effects are refused, caches are not
    mode_flag     training flags that tell when they are read
    own_modes     what a model's own train() and eval() do that is lost
    hooks         hooks of modules and parameters, and what becomes of them
    autograd_calls    what a forward asks autograd about tensors: answered or refused
    regions       grad modes, autocast and checkpoints that the calls of the pass stand in
    operations    how a call of torch is written in a graph, and the functions that graphs call besides torch's
    leaves        leaf modules on fake tensors, without arithmetic
    layer_rules   the commonest layers and functions -> what comes out of a contiguous input
    sizes         symbols that stand for sizes of inputs, and what was decided on them
    expressions   arithmetic on symbols -> Python text, functions, nodes
    size_checks   which of a call's decisions on sizes matter for what it gives
    size_nodes    sizes that a graph computes
    type_nodes    element types that a graph reads from tensors
    size_guards   what was decided on sizes -> guards
    merging       two recordings -> one graph that follows the mode and the batch size
    behaviour     what a network does in a setting: outputs and gradients; where two networks differ
    verification  the graph run against the model in several settings; what went wrong, as the error a user gets

A converted network's recordings:

    original         the model that it was made from, over the network's own tensors
    conditions       what the arguments of a call have to be for a recording to be right
    tree_watch       whether the modules that recordings were written over are still there
    recordings       the first recording, and those made later for inputs that break its guards
    recorded_module  a graph module that runs the recording that is right for a call

What others do with a captured graph:

    extraction    what lies between two sets of values, as a graph
    layouts       a piece's first input in the order in memory that was recorded
    random_calls  which calls draw random numbers
    called_module a graph module whose calls are checked first
    graph_copy    the whole graph written anew, with some nodes replaced
    region_code   a graph whose nodes stand in regions, as code that runs within them
    module_view   a graph over modules that live elsewhere, as a module that shares their parameters
    network_piece  a piece of a converted network, which is asked what the model's module of its name would be
    module_copy   the copy of the model that a converted network owns
"""

from .captured import Capture
from .example import Example
from .front_end import capture

__all__ = ["Capture", "Example", "capture"]
