"""What is known of single edges: how it is read, and what is refused."""

import gzip

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

from sccvae_pyro import SCCVAE, InputError, InputWarning
from sccvae_pyro.models.graph import Edges, GraphPrior, KnownGraph, LearnedOrder, Ordered
from sccvae_pyro.models.slot import Sizes
from sccvae_pyro.models.spec import ModelSpec

NAMES = ("TP53", "MYC", "GATA1", "KLF1")
SIZES = Sizes(100, genes=6, nodes=4, perturbations=3, features=0, covariates=0, node_names=NAMES)
MYC_KLF1 = ("MYC", "KLF1")


def possible(graph, sizes=SIZES):
    """Edges that the guide factor has, by name, with the probability of each."""
    factor = graph.guide(sizes, torch.zeros(3, 0))
    sources, targets, *_ = factor.edges
    names = [(NAMES[j], NAMES[k]) for j, k in zip(sources.tolist(), targets.tolist(), strict=True)]
    probability = factor.weights.log_probability[:, 1].exp().tolist()
    return {name: round(p, 6) for name, p in zip(names, probability, strict=True)}


# What is possible


def test_only_named_edges_are_possible():
    graph = KnownGraph([("TP53", "GATA1"), ("MYC", "GATA1", 0.9)], [MYC_KLF1], probability=0.3)
    assert possible(graph) == {("TP53", "GATA1"): 0.3, ("MYC", "GATA1"): 0.9, MYC_KLF1: 1.0}


def test_other_edges_have_a_probability_too():
    graph = KnownGraph([MYC_KLF1], forbidden=[("TP53", "MYC"), ("TP53", "GATA1")], elsewhere=0.05)
    expected = {("TP53", "KLF1"): 0.05, ("MYC", "GATA1"): 0.05, MYC_KLF1: 0.5, ("GATA1", "KLF1"): 0.05}
    assert possible(graph) == expected


def test_a_required_edge_may_be_named_as_allowed():
    assert possible(KnownGraph([("MYC", "KLF1", 0.2)], [MYC_KLF1])) == {MYC_KLF1: 1.0}


def test_nodes_without_names_are_counted():
    sizes = Sizes(100, genes=6, nodes=4, perturbations=3, features=0, covariates=0)
    assert len(possible(KnownGraph([("node_0", "node_3")]), sizes)) == 1


def test_names_read_from_json_are_names():
    assert Sizes(1, 1, 2, 1, 0, 0, node_names=["A", "B"]) == Sizes(1, 1, 2, 1, 0, 0, node_names=("A", "B"))


# Where it comes from


def test_lists_and_tuples_are_the_same():
    lists = KnownGraph([["TP53", "MYC"], ["TP53", "KLF1", 1]], [["MYC", "GATA1"]], [["GATA1", "KLF1"]])
    tuples = KnownGraph((("TP53", "MYC"), ("TP53", "KLF1", 1.0)), (("MYC", "GATA1"),), (("GATA1", "KLF1"),))
    assert lists == tuples
    assert hash(lists) == hash(tuples)


def test_toml(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text(
        '[graph]\nname = "KnownGraph"\nallowed = [["TP53", "MYC"], ["MYC", "KLF1", 0.9]]\n'
        'required = [["TP53", "GATA1"]]\nforbidden = [["GATA1", "KLF1"]]\nelsewhere = 0.01\n'
    )
    expected = KnownGraph(
        [("TP53", "MYC"), ("MYC", "KLF1", 0.9)], [("TP53", "GATA1")], [("GATA1", "KLF1")], elsewhere=0.01
    )
    assert ModelSpec.read(path).priors("counts").graph == expected


def test_table():
    table = pd.DataFrame({"target": ["MYC", "KLF1", "KLF1"], "source": ["TP53", "MYC", "MYC"], "pmid": 1})
    assert KnownGraph.from_table(table) == KnownGraph([("TP53", "MYC"), MYC_KLF1])
    table["probability"] = [0.1, float("nan"), float("nan")]
    found = KnownGraph.from_table(table, forbidden=[("TP53", "KLF1")], elsewhere=0.1)
    assert found == KnownGraph([("TP53", "MYC", 0.1), MYC_KLF1], (), [("TP53", "KLF1")], elsewhere=0.1)


def test_networkx():
    graph = nx.DiGraph([("TP53", "MYC"), MYC_KLF1, ("MYC", "MYC")])
    assert KnownGraph.from_networkx(graph) == KnownGraph([("TP53", "MYC"), MYC_KLF1])
    graph.edges["TP53", "MYC"]["probability"] = 0.7
    assert KnownGraph.from_networkx(graph) == KnownGraph([("TP53", "MYC", 0.7), MYC_KLF1])


@pytest.mark.parametrize(
    "text",
    [
        "source,target,weight,resources\nTP53,MYC,-1,A\nMYC,KLF1,1,B\nMYC,MYC,1,B\n",
        "source,target\nTP53,MYC\nMYC,KLF1\n",
        "TP53\tMYC\tRepression\t1\nMYC\tKLF1\tUnknown\t2\nMYC\tKLF1\tActivation\t3\n",
        "source\ttarget\tnote\nTP53\tMYC\ta, b\nMYC\tKLF1\tc\n",
        "weight\tsource\ttarget\n\tTP53\tMYC\n\tMYC\tKLF1\n",
    ],
    ids=["CollecTRI", "own", "TRRUST", "tabs", "tabs, weights missing"],
)
def test_file(tmp_path, text):
    path = tmp_path / "network"
    path.write_text(text)
    found = KnownGraph.from_file(path, probability=0.2)
    assert set(found.allowed) == {("TP53", "MYC"), MYC_KLF1}
    assert found.probability == 0.2
    assert GraphPrior.from_dict(found.to_dict()) == found


def test_file_with_probabilities(tmp_path):
    path = tmp_path / "network.csv"
    path.write_text("source,target,weight,probability\nTP53,NA,1,0.25\n")
    assert KnownGraph.from_file(path) == KnownGraph([("TP53", "NA", 0.25)])


def test_file_with_blanks_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "network.csv"
    path.write_text("source,target,probability\nTP53,NA,0.25\nMYC,KLF1,\n", encoding="utf-8-sig")
    assert KnownGraph.from_file(path) == KnownGraph([("TP53", "NA", 0.25), MYC_KLF1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"source,target,probability\nA,B,0.1\nA,C,0.1,7\n", "not a table of edges: .* saw 4"),
        (b"source,target,probability\nA,B,0.1,7,8\n", "not a table of edges: Length of header"),
        (b'source,target\nA,"B\n', "not a table of edges"),
        (b"source,target\nA,\n", r"'' in the edge \('A', ''\) is no name of a node"),
        (b"source,target\n,B\n", r"'' in the edge \('', 'B'\) is no name of a node"),
        (b"source,target\nA\n", "'' in the edge"),
        (b"source,target,probability\nA,B,high\n", "A -> B must lie between 0 and 1, not 'high'"),
        (gzip.compress(b"source,target\nA,B\n", mtime=0), "network.csv is not a text in UTF-8. Unpack"),
    ],
)
def test_files_that_hold_no_edges(tmp_path, content, message):
    path = tmp_path / "network.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        KnownGraph.from_file(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read .*nowhere.csv: No such file"):
        KnownGraph.from_file(tmp_path / "nowhere.csv")
    path = tmp_path / "genes.txt"
    path.write_text("TP53\nMYC\n")
    with pytest.raises(InputError, match="does not hold regulons"):
        KnownGraph.from_file(path)


EDGES = pd.DataFrame({"source": ["A", "B"], "target": ["B", "C"], "probability": [0.5, 0.5]})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (EDGES.rename(columns={"target": "gene"}), "no column 'target', its columns are 'source', 'gene'"),
        (EDGES[["source", "target", "source"]], "more than one column 'source'"),
        (EDGES.assign(source=["A", np.nan]), r"nan in the edge \(nan, 'C', 0.5\) is no name"),
        (EDGES.assign(target=["B", None]), r"None in the edge \('B', None, 0.5\) is no name"),
        (None, "must be a DataFrame, not None"),
        ("edges.csv", "must be a DataFrame, not 'edges.csv'"),
        ({"source": ["A"], "target": ["B"]}, "must be a DataFrame"),
    ],
)
def test_tables_without_edges(table, message):
    with pytest.raises(InputError, match=f"KnownGraph: .*{message}"):
        KnownGraph.from_table(table)


@pytest.mark.parametrize("graph", [nx.Graph([("A", "B")]), None])
def test_graph_without_directions(graph):
    with pytest.raises(InputError, match="not directed"):
        KnownGraph.from_networkx(graph)


def test_attributes_of_a_graph_are_not_its_nodes():
    graph = nx.DiGraph()
    graph.add_edge("MYC", "KLF1", source="CollecTRI", target="blood")
    assert KnownGraph.from_networkx(graph) == KnownGraph([MYC_KLF1])


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"required": [MYC_KLF1], "forbidden": [MYC_KLF1]}, "'MYC -> KLF1' is both required and forbidden"),
        ({"allowed": [MYC_KLF1], "forbidden": [MYC_KLF1]}, "'MYC -> KLF1' is both allowed and forbidden"),
        ({"allowed": [(*MYC_KLF1, 0.1), MYC_KLF1]}, "MYC -> KLF1 is allowed with more than one probability"),
        ({"required": [("A", "B"), ("B", "C"), ("C", "A")]}, "form a cycle, A -> B -> C -> A"),
        ({"allowed": [("A", "A")]}, "allowed holds an edge from 'A' to itself"),
        ({"allowed": [("A", "B", 1.5)]}, "the probability of A -> B must lie between 0 and 1, not 1.5"),
        ({"allowed": [("A", "B", "high")]}, "between 0 and 1, not 'high'"),
        ({"allowed": [("A", "B", [])]}, r"between 0 and 1, not \[\]"),
        ({"allowed": [("A", "B", True)]}, "between 0 and 1, not True"),
        ({"allowed": [("A", None)]}, r"None in the edge \('A', None\) is no name of a node"),
        ({"allowed": [("A", np.nan)]}, r"nan in the edge \('A', nan\) is no name of a node"),
        ({"allowed": [("A", " ")]}, "' ' in the edge"),
        ({"allowed": [("A", True)]}, "True in the edge"),
        ({"allowed": [(b"A", "B")]}, "b'A' in the edge"),
        ({"allowed": [{"A", "B"}]}, r"an edge of allowed is \(source, target\) or"),
        ({"allowed": [{"A": 1, "B": 2}]}, r"an edge of allowed is \(source, target\) or"),
        (
            {"required": [MYC_KLF1], "allowed": [(*MYC_KLF1, 0)]},
            "'MYC -> KLF1' is both required and of probability 0",
        ),
        ({"allowed": ["AB"]}, r"an edge of allowed is \(source, target\) or .* not 'AB'"),
        ({"allowed": [("A",)]}, r"an edge of allowed is \(source, target\) or"),
        (
            {"required": [("A", "B", 0.5)]},
            r"an edge of required is \(source, target\), not \('A', 'B', 0.5\)",
        ),
        ({"forbidden": "A -> B"}, "forbidden must be a list of edges .* not 'A -> B'"),
        ({"required": {"A": "B"}}, "required must be a list of edges"),
        ({"probability": 2}, "probability must lie between 0 and 1"),
        ({"elsewhere": True}, "elsewhere must lie between 0 and 1, not True"),
        ({"elsewhere": -1}, "elsewhere must lie between 0 and 1"),
        ({"spike": 1.0}, "spike must be narrower than slab"),
    ],
)
def test_lists_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=f"KnownGraph.*{message}"):
        KnownGraph(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "names no edge that may be"),
        ({"forbidden": [MYC_KLF1]}, "names no edge that may be"),
        ({"allowed": [("A", "B")]}, "none of the nodes 'A', 'B'. Its nodes are 'TP53', 'MYC'"),
        ({"allowed": [("A", "MYC")]}, "leaves no edge: it names 1 nodes that the model does not have, 'A'"),
        (
            {"allowed": [("KLF1", "MYC")]},
            "leaves no edge: 1 go against the order of the nodes, 'KLF1 -> MYC', see Ordered",
        ),
        (
            {"required": [("KLF1", "MYC"), ("TP53", "MYC")]},
            "required 'KLF1 -> MYC' goes against the order of the nodes, in which 'MYC' stands before 'KLF1'",
        ),
    ],
)
def test_graphs_that_do_not_fit_the_nodes(settings, message):
    with pytest.raises(InputError, match=message):
        KnownGraph(**settings).guide(SIZES, torch.zeros(3, 0))


def test_unknown_names_are_counted():
    graph = KnownGraph([MYC_KLF1, *(("MYC", f"G{i}") for i in range(9))])
    with pytest.warns(InputWarning, match="names 9 nodes that the model does not have, 'G0', .* and 3 more"):
        assert possible(graph) == {MYC_KLF1: 0.5}


def test_allowed_edges_against_the_order_are_named():
    graph = KnownGraph([MYC_KLF1, ("KLF1", "MYC")])
    with pytest.warns(
        InputWarning, match="leaves edges out: 1 go against the order of the nodes, 'KLF1 -> MYC'"
    ):
        assert possible(graph) == {MYC_KLF1: 0.5}


def test_a_warning_is_given_once_at_the_line_of_the_user(screen):
    graph = KnownGraph([("node_0", "node_1"), ("STAT1", "node_2")])
    with pytest.warns(InputWarning, match="names 1 nodes that the model does not have, 'STAT1'") as given:
        SCCVAE(screen, n_nodes=3, hidden=(4,), graph=graph).fit(max_epochs=1, progress=False)
    assert [warning.filename for warning in given] == [__file__]


def test_an_edge_that_no_list_names_is_not_there():
    assert "an edge that no list names is not there" in KnownGraph.__doc__.splitlines()[0]
    B = KnownGraph([MYC_KLF1]).sample(Edges.in_order(torch.arange(4)), SIZES, torch.zeros(()))
    assert (B != 0).nonzero().tolist() == [[1, 3]]


def test_another_order_takes_the_edges():
    graph = KnownGraph(required=[("KLF1", "MYC")])
    assert possible(Ordered(graph, ("KLF1", "MYC", "TP53", "GATA1"))) == {("KLF1", "MYC"): 1.0}
    both = LearnedOrder(KnownGraph([MYC_KLF1, ("KLF1", "MYC")])).guide(SIZES, torch.zeros(3, 0))
    assert both.edges.edges.number == 2
