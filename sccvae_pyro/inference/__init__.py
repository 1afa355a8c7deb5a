"""Fitting the program and asking it questions."""
