"""Inputs that real data brings and nobody wants, each with the answer it must get."""
