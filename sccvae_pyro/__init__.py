"""SCCVAE: the single-cell causal variational autoencoder for Perturb-seq, as a Pyro program."""

from sccvae_pyro import evaluate, plots, priors
from sccvae_pyro.data import datasets, features, splits
from sccvae_pyro.data.schema import setup_anndata
from sccvae_pyro.errors import InputError, InputWarning
from sccvae_pyro.sccvae import SCCVAE
from sccvae_pyro.sensitivity import sensitivity
from sccvae_pyro.stability import restarts

__version__ = "0.1.0"

__all__ = [
    "SCCVAE",
    "InputError",
    "InputWarning",
    "datasets",
    "evaluate",
    "features",
    "plots",
    "priors",
    "restarts",
    "sensitivity",
    "setup_anndata",
    "splits",
]
