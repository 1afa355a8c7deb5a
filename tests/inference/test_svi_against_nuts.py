"""The guide against Hamiltonian Monte Carlo, for every graph prior and every penetrance prior."""

import pytest
from svi_and_nuts import compare, members

TOLERANCE = 0.25
"""Difference of means that is laid to the guide, in sds by NUTS; beside it stand four Monte Carlo errors."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slot", "member"), members(), ids=[f"{slot}-{type(member).__name__}" for slot, member in members()]
)
def test_means_of_what_the_cells_determine_agree(slot, member, record_property):
    """Edges and total effects. Strengths, which the prior tells from directions, are recorded only."""
    rows = compare(slot, member).set_index("quantity")
    for quantity, row in rows.iterrows():
        for name in ("slope", "error", "worst", "sd_ratio"):
            record_property(f"{quantity}.{name}", round(row[name], 3))
    for quantity, row in rows.drop(index="strength", errors="ignore").iterrows():
        assert row["worst"] < TOLERANCE + 4 * row["noise"], (quantity, row.to_dict())
