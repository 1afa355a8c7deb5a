"""What setup_anndata accepts, what it refuses, and whether the message names the culprit and the remedy."""

import functools
import re
import time
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sccvae_pyro.data.matrix import BLOCK_VALUES, blocks, row_sums
from sccvae_pyro.data.schema import (
    UNS_KEY,
    Schema,
    canonical_label,
    cell_guides,
    cell_labels,
    expression_matrix,
    feature_table,
    library_sizes,
    parse_targets,
    setup_anndata,
)
from sccvae_pyro.errors import InputError, InputWarning

LABELS = ["control", "control", "A", "A", "B", "B", "A+B", "B+A"]
GUIDES = ["nt1", "nt2", "a1", "a2", "b1", "b1", "a1+b1", "a1+b1"]
LAYOUTS = {
    "dense": np.asarray,
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "integers": lambda x: x.astype(np.int64),
    "column order": np.asfortranarray,
}


def counts(n_cells=8, n_genes=5):
    """Small whole numbers, none of them in an empty cell."""
    return (np.arange(n_cells * n_genes).reshape(n_cells, n_genes) % 7 + 1).astype(np.float32)


def screen(values=None, **columns):
    """Eight cells of two perturbations, their combination, and two controls."""
    values = counts() if values is None else values
    obs = {"perturbation": LABELS, "guide": GUIDES, "batch": list("xyxyxyxy"), **columns}
    cells = [f"c{i}" for i in range(values.shape[0])]
    genes = [f"g{j}" for j in range(values.shape[1])]
    return ad.AnnData(values, obs=pd.DataFrame(obs, index=cells), var=pd.DataFrame(index=genes))


def refused(adata, *parts, control="control", **keys):
    """Assert that setup fails and that the message holds every part; nothing may have been written."""
    with pytest.raises(InputError) as error:
        setup_anndata(adata, "perturbation", control, **keys)
    for part in parts:
        assert part in str(error.value)
    assert UNS_KEY not in getattr(adata, "uns", {})


def warned(adata, *parts, **keys):
    """Assert that setup succeeds with a warning that holds every part and points at this file."""
    with pytest.warns(InputWarning) as caught:
        setup_anndata(adata, "perturbation", "control", **keys)
    message = " ".join(str(warning.message) for warning in caught)
    for part in parts:
        assert part in message
    assert all(warning.filename == __file__ for warning in caught)
    return Schema.of(adata)


# What is accepted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_alike(layout):
    adata = screen(LAYOUTS[layout](counts()))
    setup_anndata(adata, "perturbation", "control")
    assert Schema.of(adata) == Schema("perturbation", "control", "counts")
    np.testing.assert_array_equal(library_sizes(adata), counts().sum(axis=1))


def test_only_uns_changes():
    adata = screen()
    before = adata.copy()
    setup_anndata(adata, "perturbation", "control", guide_key="guide", covariate_keys=["batch"])
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    np.testing.assert_array_equal(adata.X, before.X)
    assert list(adata.uns) == [UNS_KEY]


def test_one_covariate_may_be_a_plain_string():
    adata = screen()
    setup_anndata(adata, "perturbation", "control", covariate_keys="batch")
    assert Schema.of(adata).covariate_keys == ("batch",)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_schema_survives_a_file(tmp_path, suffix):
    adata = screen(total=100.0)
    adata.uns["features"] = pd.DataFrame({"f": [0.5, 1.0]}, index=["A", "B"])
    adata.layers["counts"] = counts()
    keys = {"layer": "counts", "library_key": "total", "guide_key": "guide", "feature_key": "features"}
    setup_anndata(adata, "perturbation", "control", covariate_keys=("batch",), **keys)
    path = tmp_path / f"screen.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    read = getattr(ad, f"read_{suffix}")(path)
    assert (
        Schema.of(read)
        == Schema.of(adata)
        == Schema("perturbation", "control", "counts", covariate_keys=("batch",), **keys)
    )
    pd.testing.assert_frame_equal(feature_table(read, "features"), feature_table(adata, "features"))


def test_unset_or_foreign_schema_says_how_to_set_up():
    adata = screen()
    with pytest.raises(InputError, match=r"has not been set up.*setup_anndata"):
        Schema.of(adata)
    adata.uns[UNS_KEY] = {"model": "other"}
    with pytest.raises(InputError, match=r"'model'.*again"):
        Schema.of(adata)


def test_schema_omits_blanks():
    schema = Schema("perturbation", "control", "counts")
    assert schema.to_uns() == {"perturbation_key": "perturbation", "control": "control", "kind": "counts"}
    assert Schema.from_uns(replace(schema, layer="raw").to_uns()).layer == "raw"


# Labels


@pytest.mark.parametrize(
    ("label", "targets"),
    [
        ("A", ("A",)),
        ("B+A", ("A", "B")),
        (" B + A ", ("A", "B")),
        (("B", "A"), ("A", "B")),
        (["A"], ("A",)),
        (np.array(["B", "A"]), ("A", "B")),
        ("control", ()),
        (["control"], ()),
        ("A+control", ("A",)),
        ("control+control", ()),
    ],
)
def test_targets(label, targets):
    assert parse_targets(label, "control") == targets


def test_control_label_may_hold_the_separator():
    assert parse_targets("non+target", "non+target") == ()


@pytest.mark.parametrize(
    ("label", "message"),
    [("", "empty target"), ([], "empty target"), ("A+", "'A+' has an empty"), ("A+B+A", "names 'A' twice")],
)
def test_targets_refused(label, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse_targets(label, "control")


def test_canonical_label_inverts_parsing():
    assert canonical_label(("A", "B"), "control") == "A+B"
    assert canonical_label((), "control") == "control"
    assert parse_targets(canonical_label(("A", "B"), "control"), "control") == ("A", "B")


LABEL_COLUMNS = {
    "strings": LABELS,
    "categorical": pd.Categorical(LABELS, categories=["unused", *sorted(set(LABELS))]),
    "string dtype": pd.array(LABELS, dtype="string"),
    "lists": [label.split("+") for label in LABELS],
    "tuples": [tuple(label.split("+")) for label in LABELS],
}


@pytest.mark.parametrize("column", LABEL_COLUMNS)
def test_label_columns_are_read_alike(column):
    adata = screen()
    adata.obs["perturbation"] = pd.Series(LABEL_COLUMNS[column], index=adata.obs_names)
    setup_anndata(adata, "perturbation", "control")
    labels = cell_labels(adata)
    assert labels.tolist() == ["control", "control", "A", "A", "B", "B", "A+B", "A+B"]
    assert labels.cat.categories.tolist() == ["control", "A", "A+B", "B"]
    assert labels.index.equals(adata.obs_names)


def test_guides_are_strings_or_absent():
    adata = screen()
    setup_anndata(adata, "perturbation", "control", guide_key="guide")
    guides = cell_guides(adata)
    assert guides is not None
    assert guides.tolist() == GUIDES
    setup_anndata(adata, "perturbation", "control")
    assert cell_guides(adata) is None


# The object and its names


def test_not_an_anndata():
    refused("screen.h5ad", "not str", "datasets.read")


def test_view_is_left_alone():
    adata = screen()
    view = adata[:6]
    refused(view, "view", "adata = adata.copy()")
    assert view.is_view


@pytest.mark.parametrize(("shape", "empty"), [((0, 5), "no cells"), ((8, 0), "no genes")])
def test_empty_matrix(shape, empty):
    labels = {
        "perturbation": LABELS[: shape[0]],
        "guide": GUIDES[: shape[0]],
        "batch": list("xyxyxyxy")[: shape[0]],
    }
    refused(screen(np.zeros(shape, dtype=np.float32), **labels), empty, f"{shape[0]} x {shape[1]}", "filters")


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_duplicated_genes():
    adata = screen()
    adata.var_names = ["g0", "g1", "g1", "g3", "g4"]
    refused(adata, "Duplicated gene names", "'g1'", "var_names_make_unique()")


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_duplicated_cells():
    adata = screen()
    adata.obs_names = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c6"]
    refused(adata, "Duplicated cell names", "'c6'", "obs_names_make_unique()")


@pytest.mark.parametrize("role", ["library_key", "guide_key", "covariate_keys"])
def test_missing_column(role):
    key = ["bacth"] if role == "covariate_keys" else "bacth"
    refused(screen(), "no column 'bacth'", "Did you mean 'batch'?", "'perturbation', 'guide'", **{role: key})


def test_missing_perturbation_column():
    with pytest.raises(InputError, match=r"no column 'Perturbation'\. Did you mean 'perturbation'"):
        setup_anndata(screen(), "Perturbation", "control")


@pytest.mark.parametrize("key", ["perturbation", "batch", "guide", "total"])
def test_duplicated_column(key):
    adata = screen(total=100.0)
    adata.obs = pd.concat([adata.obs, adata.obs[[key]]], axis=1)
    roles = {"batch": "covariate_keys", "guide": "guide_key", "total": "library_key"}
    chosen = {roles[key]: key} if key in roles else {}
    refused(adata, f"2 columns named '{key}'", "columns.duplicated()", **chosen)


# Arguments of another type


@pytest.mark.parametrize("value", [None, 3, ["control"]])
def test_control_must_be_a_string(value):
    refused(screen(), f"control must be a string, not {value!r}", "label of unperturbed cells", control=value)


@pytest.mark.parametrize("value", [None, 3, ["perturbation"]])
def test_perturbation_key_must_be_a_string(value):
    with pytest.raises(InputError, match=re.escape(f"perturbation_key must be a string, not {value!r}")):
        setup_anndata(screen(), value, "control")


@pytest.mark.parametrize("role", ["layer", "library_key", "guide_key", "feature_key"])
@pytest.mark.parametrize("value", [3, ["batch"]])
def test_keys_must_be_strings(role, value):
    refused(screen(), f"{role} must be a string, not {value!r}", **{role: value})


@pytest.mark.parametrize("value", [None, 3, [None], [3], [["batch"]]])
def test_covariates_must_be_strings(value):
    refused(screen(), f"names of columns, not {value!r}", "[] for none", covariate_keys=value)


# Perturbations and guides


def test_unknown_control_suggests_its_near_labels():
    refused(screen(), "control label 'ctrl'", "Did you mean 'control'?", "'A', 'A+B', 'B'", control="ctrl")
    other = screen(perturbation=[label.replace("control", "Non-Targeting") for label in LABELS])
    refused(other, "Did you mean 'Non-Targeting'?")
    nothing_alike = screen(perturbation=[label.replace("control", "zzz") for label in LABELS])
    refused(nothing_alike, "The labels are 'A', 'A+B', 'B', 'zzz'", "as control=")


def test_no_perturbation():
    refused(screen(perturbation="control"), "Every cell of adata.obs['perturbation'] is a control")


@pytest.mark.parametrize("missing", [np.nan, None])
@pytest.mark.parametrize("categorical", [True, False])
def test_missing_label(missing, categorical):
    labels = [*LABELS[:3], missing, *LABELS[4:]]
    column = pd.Categorical(labels) if categorical else labels
    refused(
        screen(perturbation=column), "adata.obs['perturbation']", "(NaN) for 1 of 8 cells", "'c3'", ".notna()"
    )


@pytest.mark.parametrize("empty", ["", "  ", "nan"])
def test_empty_label(empty):
    refused(screen(perturbation=[*LABELS[:3], empty, *LABELS[4:]]), f"empty label {empty!r}", "'c3'", "Drop")


def test_empty_list_is_an_empty_label():
    adata = screen()
    adata.obs["perturbation"] = pd.Series(
        [[], *(label.split("+") for label in LABELS[1:])], index=adata.obs_names
    )
    refused(adata, "empty label ''", "'c0'")


def test_numeric_labels():
    refused(screen(perturbation=np.arange(8)), "holds 0 (int64)", "must be strings", ".astype(str)")


def test_target_twice_in_a_label():
    refused(screen(perturbation=[*LABELS[:-1], "A+A"]), "'A+A' names 'A' twice")


@pytest.mark.parametrize(
    ("labels", "pair"),
    [
        (["control", "control", "A", "a", "B", "B", "B", "B"], "'A' / 'a'"),
        (["control", "control", "A", " A", "B", "B", "B", "B"], "'A' / ' A'"),
        (["control", "Control ", "A", "A", "B", "B", "B", "B"], "'control' / 'Control '"),
        (["control", "control", "A+B", "A + B", "A", "A", "A", "A"], "'A+B' / 'A + B'"),
        (["control", "control", "A+b", "A+b", "A", "A", "B", "B"], "'B' / 'b'"),
        (["control", "control", "NK X2", "NKX2", "A", "A", "B", "B"], "'NKX2' / 'NK X2'"),
    ],
)
def test_spelling(labels, pair):
    keep, other = pair.split(" / ")
    refused(
        screen(perturbation=labels), "differ only by case or blanks", pair, f".replace({{{other}: {keep}}})"
    )


def test_lone_cells_are_named():
    adata = screen(perturbation=["control", "control", "A", "A", "B", "B", "C", "A+B"])
    warned(adata, "single cell (2)", "'A+B', 'C'", "Drop these cells")


@pytest.mark.parametrize(
    "name", ["None", "ctrl", "NT", "non-targeting", "Non_Targeting_2", "NTC-1", "unassigned", "n/a"]
)
def test_labels_that_name_no_gene_are_counted(name):
    adata = screen(perturbation=["control", "control", name, name, f"A+{name}", f"A+{name}", "A", "A"])
    warned(adata, "name no gene", f"{name!r} (4 cells)", f".replace({{{name!r}: 'control'}})", "drop")


def test_genes_that_resemble_controls_are_genes():
    labels = ["ctrl", "ctrl", "WT1", "WT1", "NT5E", "NT5E", "NTRK1", "NTRK1"]
    setup_anndata(screen(perturbation=labels), "perturbation", "ctrl")


@pytest.mark.parametrize("sign", [";", ",", "_", "|"])
def test_combinations_joined_by_another_sign(sign):
    labels = ["control", "control", "A", "A", "B", "B", f"A{sign}B", f"A{sign}B"]
    adata = screen(perturbation=labels)
    warned(adata, f"look like combinations joined by {sign!r} (1): 'A{sign}B'")
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).str.replace(sign, "+", regex=False)
    setup_anndata(adata, "perturbation", "control")
    assert cell_labels(adata).cat.categories.tolist() == ["control", "A", "A+B", "B"]


def test_a_target_beside_a_control_joined_by_another_sign():
    warned(screen(perturbation=["control"] * 2 + ["A"] * 3 + ["A_control"] * 3), "'A_control'", "'_', '+'")


def test_names_that_hold_a_sign_are_no_combinations():
    labels = ["control", "control", "A", "A", "NKX2_1", "NKX2_1", "A_C", "A_C"]
    setup_anndata(screen(perturbation=labels), "perturbation", "control")


def test_shared_guide():
    guides = ["nt1", "nt2", "a1", "a2", "a1", "b1", "x", "x"]
    refused(
        screen(guide=guides),
        "Guide 'a1'",
        "adata.obs['guide']",
        "'A', 'B'",
        "guide1+guide2",
        guide_key="guide",
    )


def test_missing_or_misspelt_guide():
    missing = [None, *GUIDES[1:]]
    refused(
        screen(guide=missing),
        "adata.obs['guide'] is missing (NaN) for 1 of 8 cells",
        "'c0'",
        guide_key="guide",
    )
    misspelt = [*GUIDES[:5], "B1", *GUIDES[6:]]
    refused(screen(guide=misspelt), "'B1' / 'b1'", guide_key="guide")


def test_guide_per_cell():
    barcodes = [f"barcode{i}" for i in range(8)]
    refused(screen(guide=barcodes), "adata.obs['guide']", "each of the 8 cells", guide_key="guide")


@pytest.mark.parametrize("label", [{"A"}, {"A": 1}, 5, True], ids=repr)
def test_labels_of_another_type(label):
    labels = pd.Series([label, *LABELS[1:]], dtype=object).to_numpy()
    refused(screen(perturbation=labels), f"holds {label} ({type(label).__name__})", "must be strings")


# Covariates


def test_covariates_of_lists():
    refused(screen(batch=[["x"]] * 8), "adata.obs['batch'] holds lists", covariate_keys=["batch"])


def test_covariates_that_are_the_perturbation():
    adata = screen()
    setup_anndata(adata, "perturbation", "control")
    other_names = ["cells of " + label for label in cell_labels(adata)]
    numbers = pd.factorize(np.array(other_names))[0] + 0.5
    for copy in (other_names, numbers):
        adata = screen(copy=copy)
        refused(adata, "adata.obs['copy'] tells the perturbations apart", covariate_keys=["copy"])


def test_values_beyond_single_precision():
    values = counts().astype(float)
    values[2, 1] = 1e39
    refused(screen(values), "not finite in single precision", "cell 'c2', gene 'g1'")
    refused(
        screen(dose=[1e300, *range(7)]), "too large for single precision", "'c0'", covariate_keys=["dose"]
    )
    refused(screen(total=[1e39] * 8), "finite in single precision", library_key="total")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([np.nan, 1, 2, 3, 4, 5, 6, 7], ["missing (NaN) for 1 of 8 cells", "'c0'", "Fill it"]),
        (["x", None, *"xyxyxy"], ["missing (NaN)", "'c1'"]),
        (["x"] * 8, ["constant (x)", "Leave it out"]),
        ([1.5] * 8, ["constant (1.5)"]),
        ([1, 2, np.inf, 4, 5, 6, 7, 8], ["infinite", "'c2'"]),
        ([f"id{i}" for i in range(8)], ["each of the 8 cells", "shared by cells"]),
    ],
)
def test_bad_covariate(values, parts):
    refused(screen(batch=values), "Covariate adata.obs['batch']", *parts, covariate_keys=["batch"])


def test_numeric_covariate_may_differ_in_every_cell():
    adata = screen(batch=np.linspace(0, 1, 8))
    setup_anndata(adata, "perturbation", "control", covariate_keys=["batch"])


def test_covariate_choice():
    refused(screen(), "'batch' twice", covariate_keys=["batch", "batch"])
    refused(screen(), "'perturbation'", "remove the effects", covariate_keys=["perturbation"])
    refused(screen(), "'guide'", "remove the effects", guide_key="guide", covariate_keys=["guide"])


# The feature table


def with_features(table):
    adata = screen()
    adata.uns["features"] = table
    return adata


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        (
            pd.DataFrame({"f": [1.0]}, index=["A"]),
            ["no row for 1 of 2 perturbed genes: 'B'", "Add their rows"],
        ),
        (pd.DataFrame({"f": [1.0, 2.0]}, index=["A", "b"]), ["'B'", "is 'b' the row of 'B'?"]),
        (pd.DataFrame({"f": [1.0, np.nan]}, index=["A", "B"]), ["NaN", "row 'B', column 'f'", "Leave out"]),
        (pd.DataFrame({"f": [np.inf, 1.0]}, index=["A", "B"]), ["infinite", "row 'A', column 'f'"]),
        (pd.DataFrame({"f": [1.0, 2.0, 3.0]}, index=["A", "B", "B"]), ["duplicated rows: 'B'", "Keep one"]),
        (pd.DataFrame([[1.0, 2.0]] * 2, columns=["f", "f"], index=["A", "B"]), ["duplicated columns: 'f'"]),
        (pd.DataFrame({"f": ["x", "y"]}, index=["A", "B"]), ["not numbers: 'f'", "Drop or encode"]),
        (pd.DataFrame(index=["A", "B"]), ["is empty (shape (2, 0))"]),
        (np.ones((2, 2)), ["is a ndarray", "DataFrame"]),
    ],
)
def test_bad_feature_table(table, parts):
    refused(with_features(table), "'features'", *parts, feature_key="features")


def test_unknown_feature_table():
    adata = with_features(pd.DataFrame({"f": [1.0, 2.0]}, index=["A", "B"]))
    refused(adata, "no feature table 'feature'", "Did you mean 'features'?", feature_key="feature")
    refused(screen(), "no feature table 'features'", "There are no tables", feature_key="features")


@pytest.mark.parametrize(
    "convert", [np.asarray, sparse.csr_matrix, functools.partial(pd.DataFrame, index=["A", "B"])]
)
def test_features_of_measured_genes(convert):
    adata = screen(counts(n_genes=2))
    adata.var_names = ["A", "B"]
    adata.varm["pca"] = convert(np.array([[1.0, 2.0], [3.0, 4.0]]))
    setup_anndata(adata, "perturbation", "control", feature_key="pca")
    table = feature_table(adata, "pca")
    assert table.loc["B"].tolist() == [3.0, 4.0]
    assert table.columns.tolist() == ["0", "1"]


# Values


@pytest.fixture(params=["dense", "csr_matrix", "csc_matrix"])
def layout(request):
    return LAYOUTS[request.param]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (np.nan, ["not finite", "nan in cell 'c3', gene 'g2'", "Drop that cell or gene"]),
        (np.inf, ["not finite", "inf in cell 'c3', gene 'g2'"]),
        (-2, ["negative", "-2 in cell 'c3', gene 'g2'", "layer="]),
        (2.5, ["1 of 40 values are not whole", "2.5 in cell 'c3', gene 'g2'", "numpy.rint(adata.X)"]),
    ],
)
def test_bad_value_is_located(layout, value, parts):
    values = counts()
    values[3, 2] = value
    refused(screen(layout(values)), "adata.X", *parts)


def test_bad_value_in_a_layer(layout):
    values = counts()
    values[6, 3] = -1
    adata = screen()
    adata.layers["raw"] = layout(values)
    refused(adata, "adata.layers['raw']", "-1 in cell 'c6', gene 'g3'", layer="raw")


def several_blocks():
    """Values of a screen that is walked in more than one block whichever way it is stored."""
    values = np.ones((3000, 2000), dtype=np.float32)
    assert values.size > BLOCK_VALUES
    columns = {"perturbation": ["control", "A"] * 1500, "guide": "g", "batch": "x"}
    return values, columns


def test_bad_value_in_a_later_block(layout):
    values, columns = several_blocks()
    values[2999, 1999] = -1
    refused(screen(layout(values), **columns), "-1 in cell 'c2999', gene 'g1999'")


@pytest.mark.parametrize("block_values", [1, 10, 12, 1000])
def test_blocks_cover_the_matrix_once(layout, block_values):
    values = counts()
    covered = np.zeros_like(values)
    for block in blocks(layout(values), block_values):
        part = block.values.toarray() if sparse.issparse(block.values) else block.values
        rows, columns = part.shape
        covered[block.row : block.row + rows, block.column : block.column + columns] += part
        assert part.size <= max(block_values, rows * (columns == 1), columns * (rows == 1))
    np.testing.assert_array_equal(covered, values)


def test_log_values_are_continuous(caplog):
    with caplog.at_level("INFO", logger="sccvae_pyro"):
        adata = screen(np.log1p(counts()))
        setup_anndata(adata, "perturbation", "control")
    assert Schema.of(adata).kind == "continuous"
    assert "adata.X is taken as log-normalised values" in caplog.text


def test_counts_in_a_layer_are_pointed_at():
    adata = screen(np.log1p(counts()))
    adata.layers["counts"] = sparse.csr_matrix(counts())
    adata.layers["detected"] = np.ones_like(counts())
    adata.layers["text"] = np.full((8, 5), "x", dtype=object)
    schema = warned(adata, "0.693147 in cell 'c0', gene 'g0'", "adata.layers['counts'] (layer='counts')")
    assert schema.kind == "continuous"


def test_counts_in_x_or_raw_are_pointed_at():
    adata = screen()
    adata.layers["log"] = np.log1p(counts())
    warned(adata, "adata.X (layer=None)", layer="log")
    adata = screen()
    adata.raw = adata
    adata.X = np.log1p(counts())
    warned(adata, "adata.raw", "adata.raw[:, adata.var_names].X", "layer='counts'")


def test_normalised_without_logarithm_is_doubtful():
    adata = screen(counts() * 31.7)
    assert (
        warned(adata, "neither counts nor log-normalised", "31.7 in cell 'c0'", "log1p").kind == "continuous"
    )


def test_nothing_but_zeros(layout):
    refused(screen(layout(np.zeros((8, 5), dtype=np.float32))), "Every value of adata.X is zero", "layer=")


def test_layer_that_does_not_exist():
    adata = screen()
    adata.layers["counts"] = counts()
    refused(adata, "no layer 'count'", "Did you mean 'counts'?", layer="count")
    refused(screen(), "no layer 'counts'", "There are no layers", layer="counts")


def test_absent_matrix():
    adata = ad.AnnData(obs=screen().obs, var=screen().var, layers={"counts": counts()})
    refused(adata, "adata.X is absent", "'counts'", "layer=")
    setup_anndata(adata, "perturbation", "control", layer="counts")
    assert expression_matrix(adata, "counts") is adata.layers["counts"]


def test_unsupported_storage():
    adata = screen()
    adata.layers["text"] = np.full((8, 5), "x", dtype=object)
    refused(adata, "adata.layers['text'] has dtype object", "astype('float32')", layer="text")


@pytest.mark.parametrize("layout_name", ["dense", "csr_matrix"])
def test_detection_is_not_expression(layout_name):
    refused(screen(LAYOUTS[layout_name](counts() > 3)), "adata.X holds true and false", "layer=")


# Library sizes


def test_library_column_is_used():
    adata = screen(total=np.arange(100, 108))
    setup_anndata(adata, "perturbation", "control", library_key="total")
    np.testing.assert_array_equal(library_sizes(adata), np.arange(100.0, 108.0))


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (0, ["must be positive", "1 of 8 cells, the first is 'c2' (0)"]),
        (-5, ["'c2' (-5)", "Drop those cells"]),
        (np.nan, ["'c2' (nan)"]),
        (np.inf, ["'c2' (inf)"]),
        (3, ["less than the molecules counted in 1 of 8 cells", "'c2' (3 < 23)", "whole transcriptome"]),
    ],
)
def test_bad_library(value, parts):
    total = np.full(8, 100.0)
    total[2] = value
    refused(screen(total=total), "adata.obs['total']", *parts, library_key="total")


def test_library_must_be_a_number():
    refused(screen(total=["many"] * 8), "dtype object", "number of molecules", library_key="total")


def test_empty_cell_needs_a_library():
    values = counts()
    values[5] = 0
    refused(screen(values), "No counts at all in 1 of 8 cells", "'c5'", "library_key=")
    adata = screen(values, total=100)
    setup_anndata(adata, "perturbation", "control", library_key="total")


def test_library_is_not_used_for_log_values():
    warned(screen(np.log1p(counts()), total=100), "adata.obs['total'] is not used", library_key="total")


# Backed, and fast


@pytest.fixture(params=["dense", "csr_matrix", "csc_matrix"])
def stored(request, tmp_path):
    def write(values, **columns):
        path = tmp_path / "screen.h5ad"
        screen(LAYOUTS[request.param](values), **columns).write_h5ad(path)
        return ad.read_h5ad(path, backed="r")

    return write


def test_backed_is_streamed(stored):
    values, columns = several_blocks()
    adata = stored(values, **columns)
    shapes = [block.values.shape for block in blocks(expression_matrix(adata))]
    assert len(shapes) == 2
    assert max(rows * columns for rows, columns in shapes) <= BLOCK_VALUES
    setup_anndata(adata, "perturbation", "control")
    assert Schema.of(adata).kind == "counts"
    assert adata.isbacked
    np.testing.assert_array_equal(row_sums(expression_matrix(adata)), 2000.0)
    adata.file.close()


def test_backed_culprit_is_located(stored):
    values = counts()
    values[7, 4] = np.nan
    adata = stored(values)
    refused(adata, "nan in cell 'c7', gene 'g4'")
    refused(adata[:4], "view", "adata = adata.to_memory()")
    adata.file.close()


@pytest.mark.parametrize("layout_name", ["dense", "csr_matrix", "csc_matrix"])
def test_twenty_thousand_cells_take_a_moment(layout_name):
    rng = np.random.default_rng(0)
    values = rng.poisson(1.0, size=(20_000, 600)).astype(np.float32)
    labels = rng.choice(["control", *(f"T{i}" for i in range(200))], size=20_000)
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(20_000)])
    adata = ad.AnnData(LAYOUTS[layout_name](values), obs=obs)
    start = time.perf_counter()
    setup_anndata(adata, "perturbation", "control")
    assert time.perf_counter() - start < 1.0
