"""Tests of the hands, each against the neighbour it touches."""
