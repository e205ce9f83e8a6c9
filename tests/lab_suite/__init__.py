"""Tests of the lab itself. Tests of the product belong in the folders named after its rooms."""
