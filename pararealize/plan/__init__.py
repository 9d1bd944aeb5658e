"""How a network is cut, as plain data, and what one step of it looks like in time, on every device.

The planner gives a Plan, which prints and survives JSON; with the seconds that each part takes it becomes a Timeline,
which does likewise. A real step gives rows, and from them the same kind of Timeline. In reading order::

    json_text          a stored text back as the value, or all its faults
    spec               the rows of a plan for stem, segments and head
    numbering          what cannot be of how many rows there are, and in which order
    consistency        what rows say that cannot be
    corrections        which outputs of segments a coarse kind corrects, and what a plan says otherwise
    fingerprints       what a plan knows its network by
    plan               where a network is cut, its adapters and coarse blocks, and what that promises
    parts              one part of a network: what it is called, what it reads, on whose device it runs
    times              the seconds of every part, forward and backward
    transfer           the seconds of a message
    peers              which ranks pass each other interface values, and sums of them
    window_ranks       which rank has which segments of each window, and passes what to whom
    actions            what is done in a step: what each action is called, and whose results it needs
    schedule           the tasks of one step in the order of each rank, and when they are done
    scheduled_step     the actions of one step, by the faster way to add linear corrections up
    simulation         a Plan and its Times as the Timeline of one step
    recording          what a rank did in a real step, a row an action
    spans              such rows of all ranks as actions, with what each waited for
    timeline           who does what when, simulated or recorded: speed-up, idle time, critical path
    trace              a Timeline for Perfetto
    figure             a picture of a Plan
    timeline_figure    a picture of a Timeline
"""

from .actions import Action, ActionKey, Span, waits_for
from .fingerprints import fingerprint
from .parts import Part
from .peers import Peers, peers_of
from .plan import Plan, Totals
from .recording import RecordedAction, StepRecording
from .simulation import simulate
from .spec import PartPlan, SegmentPlan
from .timeline import Timeline
from .times import Times, plan_times
from .trace import chrome_trace
from .transfer import Transfer

__all__ = [
    "Action",
    "ActionKey",
    "Part",
    "PartPlan",
    "Peers",
    "Plan",
    "RecordedAction",
    "SegmentPlan",
    "Span",
    "StepRecording",
    "Timeline",
    "Times",
    "Totals",
    "Transfer",
    "chrome_trace",
    "fingerprint",
    "peers_of",
    "plan_times",
    "simulate",
    "waits_for",
]
