"""The generative model: priors, networks and the program that joins them."""
