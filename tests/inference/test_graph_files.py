"""The graph in the hands of others: networkx and GraphML."""

import networkx as nx
import pytest
from screens import set_up, small_screen

from sccvae_pyro import SCCVAE, InputError


@pytest.fixture(scope="module")
def genes():
    """A model whose nodes are genes, of which one is not perturbed, and whose prior tells edges from none."""
    names = ("G0002", "G0000", "G0020")
    nodes = {"name": "Anchored", "genes": names}
    model = SCCVAE(set_up(small_screen()), nodes=nodes, graph="SpikeSlab", hidden=(8,))
    return model.fit(max_epochs=1, progress=False)


def test_edges_carry_the_table(genes):
    graph, table = genes.to_networkx(50), genes.edges(50)
    assert graph.number_of_edges() == len(table)
    for row in table.to_dict("records"):
        source, target = row.pop("source"), row.pop("target")
        assert graph.edges[source, target] == pytest.approx(row)
    assert {"mean", "sd", "q05", "q95", "present", "probability_positive", "inclusion"} == set(row)


def test_nodes_say_what_they_are(genes, fitted):
    assert dict(genes.to_networkx(5).nodes(data=True)) == {
        "G0002": {"position": 0, "is_gene": True, "perturbed": True},
        "G0000": {"position": 1, "is_gene": True, "perturbed": True},
        "G0020": {"position": 2, "is_gene": True, "perturbed": False},
    }
    assert fitted.to_networkx(5).nodes["node_3"] == {"position": 3, "is_gene": False, "perturbed": False}


def test_a_model_without_edges_has_its_nodes(screen):
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), graph="NoGraph").fit(max_epochs=1, progress=False)
    graph = model.to_networkx(5)
    assert len(graph) == 3 and graph.number_of_edges() == 0


def test_graphml_reads_back_as_it_was(genes, tmp_path):
    path = genes.write_graphml(tmp_path / "new folder" / "graph.graphml", n_samples=20)
    graph, found = genes.to_networkx(20), nx.read_graphml(path)
    assert dict(found.nodes(data=True)) == dict(graph.nodes(data=True))
    assert {edge[:2]: edge[2] for edge in found.edges(data=True)} == {
        edge[:2]: edge[2] for edge in graph.edges(data=True)
    }
    assert [file.name for file in path.parent.iterdir()] == ["graph.graphml"]


def test_a_graph_that_cannot_be_written_leaves_the_old_one(genes, tmp_path, monkeypatch):
    path = genes.write_graphml(tmp_path / "graph.graphml", n_samples=5)
    before = path.read_bytes()

    def fail(graph, unfinished):
        unfinished.write_text("<graphml>")
        raise OSError("disk full")

    monkeypatch.setattr(nx, "write_graphml", fail)
    with pytest.raises(InputError, match="disk full"):
        genes.write_graphml(path, n_samples=5)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="is a folder"):
        genes.write_graphml(tmp_path)
