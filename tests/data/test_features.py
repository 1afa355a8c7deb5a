"""Feature builders against hand-computed cases, and the one table that standardises them."""

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sccvae_pyro.data.features import (
    FeatureTable,
    combine,
    control_pca,
    gene_set_kernel,
    gene_sets,
    read_gmt,
    read_regulons,
    regulon_kernel,
    regulons,
    user_table,
)
from sccvae_pyro.data.schema import setup_anndata
from sccvae_pyro.errors import InputError

N_CELLS, N_GENES = 60, 12


def screen(layout=np.asarray, log=False):
    """Controls and two perturbations; gene g1 is ten times g0, gene g11 is silent in controls."""
    counts = np.random.default_rng(0).poisson(4.0, (N_CELLS, N_GENES)).astype(np.float32) + 1
    counts[:, 1] = 10 * counts[:, 0]
    labels = np.repeat(["control", "A", "B"], N_CELLS // 3)
    counts[labels == "control", 11] = 0
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(N_CELLS)])
    var = pd.DataFrame(index=[f"g{j}" for j in range(N_GENES)])
    adata = ad.AnnData(layout(np.log1p(counts) if log else counts), obs=obs, var=var)
    setup_anndata(adata, "perturbation", "control")
    return adata


@pytest.fixture
def gmt(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("PAIR\tdescription\tA\tB\nALL\t\tA\tB\tC\tD\n\nOTHER\t\tC\tE\n")
    return path


@pytest.fixture
def collectri(tmp_path):
    path = tmp_path / "collectri.csv"
    path.write_text(
        '"source","target","weight"\n"T","A",1\n"T","B",1\n"U","A",-1\n"U","B",-1\n"B","D",1\n"V","V",1\n'
    )
    return path


@pytest.fixture
def trrust(tmp_path):
    path = tmp_path / "trrust.tsv"
    path.write_text("T\tA\tActivation\t1\nT\tA\tUnknown\t2\nU\tA\tRepression\t3;4\nU\tB\tUnknown\t5\n")
    return path


def table(values, genes, name=None, columns=None):
    frame = pd.DataFrame(np.asarray(values, dtype=float), index=list(genes), columns=columns)
    return frame.rename_axis(columns=name)


# Control cells


def test_control_pca_is_the_pca_of_genes_over_control_cells():
    adata = screen()
    controls = adata.X[:20].astype(float)
    logged = np.log1p(1e4 * controls / controls.sum(axis=1, keepdims=True)).T[:11]
    left, values, _ = np.linalg.svd(logged - logged.mean(axis=0), full_matrices=False)
    features = control_pca(adata, n_components=3)
    assert features.shape == (11, 3)
    assert features.columns.name == "control_pca"
    np.testing.assert_allclose(np.abs(features), np.abs(left[:, :3] * values[:3]), atol=1e-8)


def test_control_pca_leaves_out_silent_genes():
    assert "g11" not in control_pca(screen(), 3).index


def test_control_pca_of_log_values_takes_them_as_they_are():
    logged = screen(log=True).X[:20].astype(float).T[:11]
    left, values, _ = np.linalg.svd(logged - logged.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(
        np.abs(control_pca(screen(log=True), 2)), np.abs(left[:, :2] * values[:2]), atol=1e-5
    )


@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_control_pca_does_not_depend_on_storage(layout):
    pd.testing.assert_frame_equal(control_pca(screen(layout), 3), control_pca(screen(), 3))


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_control_pca_of_a_backed_screen(tmp_path, layout):
    screen(layout).write_h5ad(tmp_path / "screen.h5ad")
    backed = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    pd.testing.assert_frame_equal(control_pca(backed, 3), control_pca(screen(), 3))
    backed.file.close()


def test_control_pca_has_as_many_components_as_there_are():
    assert control_pca(screen(), 50).shape == (11, 11)


def test_control_pca_is_reproducible():
    pd.testing.assert_frame_equal(control_pca(screen(), 3, seed=1), control_pca(screen(), 3, seed=1))


def test_control_pca_needs_setup():
    with pytest.raises(InputError, match="has not been set up"):
        control_pca(ad.AnnData(np.ones((2, 2))))


# Gene sets


def test_gmt_is_read(gmt):
    assert read_gmt(gmt) == {"PAIR": ["A", "B"], "ALL": ["A", "B", "C", "D"], "OTHER": ["C", "E"]}


def test_gmt_with_a_bad_line(tmp_path):
    path = tmp_path / "bad.gmt"
    path.write_text("GOOD\t\tA\nBAD A B\n")
    with pytest.raises(InputError, match=r"Line 2 of .*bad.gmt.*'BAD A B'.*separated by tabs"):
        read_gmt(path)


def test_absent_file(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read .*none.gmt.*Check the path"):
        gene_sets(tmp_path / "none.gmt")


def test_kernel_is_the_weighted_cosine(gmt):
    kernel = gene_set_kernel(gmt, ["A", "B", "C", "D", "E"])
    pair, everyone, other = np.log1p(5 / 2), np.log1p(5 / 4), np.log1p(5 / 2)
    a, c = np.array([pair, everyone, 0]), np.array([0, everyone, other])
    assert kernel.loc["A", "B"] == pytest.approx(1.0)
    assert kernel.loc["A", "C"] == pytest.approx(a @ c / np.linalg.norm(a) / np.linalg.norm(c))
    assert kernel.loc["A", "E"] == 0
    np.testing.assert_allclose(np.diag(kernel), 1)
    np.testing.assert_allclose(kernel, kernel.T)


def test_kernel_of_other_rows(gmt, caplog):
    with caplog.at_level("INFO", logger="sccvae_pyro"):
        kernel = gene_set_kernel(gmt, ["A", "FOO"], rows=["B", "D", "E", "BAR"])
    assert kernel.columns.tolist() == ["A"]
    assert kernel.index.tolist() == ["B", "D"]  # E shares no set with A, and BAR is unknown
    assert "'FOO'" in caplog.text


def test_unknown_genes_are_absent(gmt):
    assert gene_sets(gmt, ["A", "FOO"]).index.tolist() == ["A"]
    assert gene_set_kernel(gmt, ["A", "FOO"]).index.tolist() == ["A"]


def test_no_gene_in_common(gmt):
    with pytest.raises(InputError, match=r"none of the 1 genes \('ENSG1'\).*'A', 'B'.*identifiers"):
        gene_set_kernel(gmt, ["ENSG1"])


def test_gene_sets_keep_inner_products(gmt):
    kernel = gene_set_kernel(gmt, list("ABCDE"))
    embedding = gene_sets(gmt)
    np.testing.assert_allclose(embedding @ embedding.T, kernel, atol=1e-12)
    assert embedding.columns.name == "gene_sets"


def test_gene_sets_of_some_genes_are_rows_of_all(gmt):
    pd.testing.assert_frame_equal(
        gene_sets(gmt, ["C", "A"], n_components=2), gene_sets(gmt, None, 2).loc[["C", "A"]]
    )


# Regulons


def test_collectri_is_read(collectri):
    edges = read_regulons(collectri).set_index(["source", "target"])["sign"]
    assert edges["T", "A"] == 1
    assert edges["U", "B"] == -1


def test_trrust_is_read(trrust):
    edges = read_regulons(trrust).set_index(["source", "target"])["sign"]
    assert edges.to_dict() == {("T", "A"): 1, ("U", "A"): -1, ("U", "B"): 1}


def test_contradictory_signs_count_as_activation(tmp_path):
    path = tmp_path / "edges.tsv"
    path.write_text("T\tA\tActivation\t1\nT\tA\tRepression\t2\n")
    assert read_regulons(path)["sign"].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene,score\nA,1\n", r"does not hold regulons.*source,target,weight.*TRRUST"),
        ("", "does not hold regulons"),
        ("source,target,weight\nT,A,strong\n", "edge without a sign: 'T A strong'"),
        ("T\tA\tBinding\t1\n", "edge without a sign: 'T A Binding'"),
    ],
)
def test_bad_regulons(tmp_path, text, message):
    path = tmp_path / "edges"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_regulons(path)


def test_regulon_kernel_knows_shared_regulators_signs_and_direct_edges(collectri):
    kernel = regulon_kernel(collectri, ["A", "B", "D", "T", "U", "V"])
    assert kernel.loc["A", "B"] > 0.2, "A and B share both regulators"
    assert kernel.loc["T", "U"] < 0, "T and U regulate the same genes in opposite directions"
    assert kernel.loc["B", "D"] > 0, "B regulates D"
    assert kernel.loc["A", "D"] == 0
    assert kernel.loc["V"].drop("V").eq(0).all()
    np.testing.assert_allclose(np.diag(kernel), 1)
    np.testing.assert_allclose(kernel, kernel.T)


def test_regulons_embed_what_the_kernel_compares(collectri):
    embedding = regulons(collectri)
    genes = embedding.index.tolist()
    np.testing.assert_allclose(embedding @ embedding.T / 2, regulon_kernel(collectri, genes), atol=1e-12)
    assert regulons(collectri, ["T", "FOO"], n_components=2).shape == (1, 2)


# A user's table


def test_user_table_is_copied_as_doubles():
    mine = pd.DataFrame({0: [1, 2]}, index=["A", "B"])
    checked = user_table(mine, "embedding")
    assert checked.columns.tolist() == ["0"]
    assert checked.columns.name == "embedding"
    assert checked.dtypes.tolist() == [np.dtype(float)]
    assert mine.columns.tolist() == [0]


def test_bad_user_table_is_named():
    with pytest.raises(
        InputError, match=r"embedding holds NaN or infinite values in 1 of 2 rows.*row 'B', column 'x'"
    ):
        user_table(table([[1], [np.nan]], "AB", columns=["x"]), "embedding")


# One table of all sources


def test_blocks_weigh_alike():
    rng = np.random.default_rng(0)
    wide, narrow = (
        table(100 * rng.normal(size=(30, 200)) + 7, range(30), "wide"),
        table(rng.normal(size=(30, 10)), range(30), "narrow"),
    )
    features = FeatureTable.fit([wide, narrow])
    squared = features.table**2
    for source in ("wide", "narrow"):
        assert squared.filter(like=f"{source}:").sum(axis=1).mean() == pytest.approx(1.0)
    np.testing.assert_allclose(features.table.mean(), 0, atol=1e-12)
    restored = features.table * features.scale + features.center
    np.testing.assert_allclose(restored.filter(like="wide:"), wide)


def test_scale_comes_from_the_chosen_genes():
    features = FeatureTable.fit([table([[0], [2], [100]], "ABC", "f")], genes=["A", "B"])
    assert features.table["f:0"].tolist() == [-1.0, 1.0, 99.0]


def test_constant_columns_are_dropped(caplog):
    with caplog.at_level("INFO", logger="sccvae_pyro"):
        features = combine(table([[1, 5, 0.1], [2, 5, 0.1]], "AB", "f", columns=["x", "y", "z"]))
    assert features.columns.tolist() == ["f:x"]
    assert "Dropped 2 constant columns of f: 'f:y', 'f:z'" in caplog.text


def test_no_column_varies():
    with pytest.raises(InputError, match="No column of 'f' varies"):
        combine(table([[5], [5]], "AB", "f"))


def test_inner_keeps_what_all_sources_know():
    features = combine(table([[1], [2], [4]], "ABC", "f"), table([[1], [2], [9]], "DCB", "g"))
    assert features.index.tolist() == ["B", "C"]
    assert features.columns.tolist() == ["f:0", "g:0"]


def test_outer_needs_a_declaration():
    known = (table([[1], [2], [3]], "ABC", "f"), table([[1], [5]], "AB", "g"))
    with pytest.raises(InputError, match=r"1 genes lack a source: 'C' \(the first has none in g\).*fill="):
        combine(*known, how="outer")
    features = combine(*known, how="outer", fill=["C"])
    assert features.loc["C", "g:0"] == 0
    assert features.loc["A", "g:0"] == -1


def test_unknown_how():
    with pytest.raises(InputError, match="how='left' is unknown"):
        combine(table([[1], [2]], "AB"), how="left")


def test_nothing_in_common_between_sources():
    with pytest.raises(InputError, match=r"'f', 'g' share 0 genes.*identifiers"):
        combine(table([[1], [2]], "AB", "f"), table([[1], [2]], "CD", "g"))


def test_labels_of_sources():
    with pytest.raises(InputError, match="Two feature tables are called 'f'"):
        combine(table([[1], [2]], "AB", "f"), table([[1], [2]], "AB", "f"))
    with pytest.raises(InputError, match="no feature table"):
        combine()
    unnamed = combine(table([[1], [2]], "AB"), table([[1], [2]], "AB"))
    assert unnamed.columns.tolist() == ["table1:0", "table2:0"]


@pytest.fixture
def two_sources():
    return FeatureTable.fit(
        [table([[1], [2], [4]], ["A", "B", "Stat1"], "f"), table([[1], [2], [9]], ["A", "C", "Stat1"], "g")]
    )


def test_predictable_says_why_not(two_sources):
    answers = two_sources.predictable(["A", "B", "FOO", "STAT1"])
    assert answers["gene"].tolist() == ["A", "B", "FOO", "STAT1"]
    assert answers["predictable"].tolist() == [True, False, False, False]
    assert answers["reason"].tolist() == [
        "",
        "no features in g",
        "no features in any source (f, g)",
        "no features in any source (f, g) (did you mean Stat1?)",
    ]


def test_rows_are_in_the_order_asked_for(two_sources):
    np.testing.assert_array_equal(
        two_sources.rows(["Stat1", "A", "A"]), two_sources.table.loc[["Stat1", "A", "A"]]
    )


def test_missing_rows_are_an_error(two_sources):
    with pytest.raises(
        InputError, match=r"for 2 of 3 genes: 'B': no features in g; 'FOO': no features in any source"
    ):
        two_sources.rows(["A", "B", "FOO"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"x": [1.0, 2.0]}, index=["A", np.nan]), "rows without a name"),
        (pd.DataFrame({"x": [1.0, 2.0]}, index=[1, "1"]), "duplicated rows: '1'"),
        (pd.DataFrame({"x": [1j, 2.0]}, index=["A", "B"]), "columns that are not numbers: 'x'"),
        (pd.DataFrame({"x": [1e200, 2.0]}, index=["A", "B"]), "single precision ends at"),
        (None, "must be a DataFrame of genes x features, not NoneType"),
        ([1.0], "must be a DataFrame of genes x features, not list"),
    ],
)
def test_tables_that_describe_no_genes(table, message):
    with pytest.raises(InputError, match=message):
        user_table(table)
    with pytest.raises(InputError, match=message):
        combine(table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no gene set"),
        (b"S\t\tA\tB\nS\t\tC\n", "Line 2 of .* is a second set 'S'"),
        (gzip.compress(b"S\t\tA\tB\n", mtime=0), "not a text in UTF-8"),
    ],
    ids=["empty", "twice", "packed"],
)
def test_files_without_gene_sets(tmp_path, content, message):
    path = tmp_path / "sets.gmt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        gene_sets(path)


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_number_of_components(tmp_path, number):
    path = tmp_path / "sets.gmt"
    path.write_text("S\t\tA\tB\nT\t\tA\tC\n")
    with pytest.raises(InputError, match=f"n_components must be .* at least 1, not {number!r}"):
        gene_sets(path, n_components=number)


@pytest.mark.parametrize("gene", [None, np.nan, 5, ["A"]], ids=repr)
def test_genes_are_names(two_sources, gene):
    with pytest.raises(InputError, match="asked for by their names"):
        two_sources.predictable([gene])
