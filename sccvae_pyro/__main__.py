"""The command line, as ``python -m sccvae_pyro``."""

from sccvae_pyro.cli import app

if __name__ == "__main__":
    app(prog_name="sccvae")
