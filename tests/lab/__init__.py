"""A neighbour that behaves like EC2, IMDS and the VPC, for tests and for a cloud on a laptop.

It imports nothing of the product; whatever the product does, the lab answers as AWS would.
Start it with `python -m tests.lab`. Product code and the product's tests do not belong here.
"""
