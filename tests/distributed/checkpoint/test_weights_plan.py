"""What of a network's plan its weights depend on."""

import json

from torch import nn

from pararealize import run_local
from pararealize.distributed.checkpoint.weights_plan import plan_facts, plan_of, without_added
from tests.training import chain, network


def test_the_plan_of_what_runs_a_network():
    net = network()
    assert plan_of(net) is net.plan
    assert plan_of(run_local(net)) is net.plan
    assert plan_of(chain()) is None
    strange = nn.Linear(1, 1)
    strange.plan = "none of ours"
    assert plan_of(strange) is None


def test_facts_are_plain_data_that_differ_between_plans():
    nets = network(), network(2), network(cuts=["4", "12"]), network(coarse="block"), network(source="stem"), chain()
    texts = [json.dumps(plan_facts(net)) for net in nets]
    assert json.loads(texts[0])["n"] == 3
    assert texts[-1] == "null"
    assert len(set(texts)) == len(nets)


def test_names_of_the_original():
    assert without_added(["0.weight", "adapters.C2.weight", "coarse.F1.bias", "coarser"]) == ["0.weight", "coarser"]
