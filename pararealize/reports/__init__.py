"""Values that the library gives -> one HTML page that shows them, and needs no network and no JavaScript.

In reading order:

    page      values -> an HTML file (``write_report`` composes the files here)
    sections  plan, chain of blocks, timeline, calibration, trade-off, history, … -> Section
    results   what was measured on data -> Section: calibrations, trade-offs, training runs, scores
    network   a plan, a chain of blocks -> Section: the network as blocks, its cuts, shapes, receptive fields, guards
    strategy_table  what a step takes by every strategy -> Section
    elements  Section and Table: what a page is made of, whatever it shows
    charts    series of points -> axes, ticks, lines and marks (``Chart``, ``Series``)
    lanes     a timeline -> a row a rank, bars and arrows, to scale
    picture   the picture of a plan -> SVG within a page, in the page's colours
"""

from .charts import Chart, Series
from .elements import Section, Table
from .page import check_report, write_report

__all__ = ["Chart", "Section", "Series", "Table", "check_report", "write_report"]
