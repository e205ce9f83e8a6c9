"""A neighbour that behaves like EC2, IMDS and the VPC. Imports nothing of the product."""
