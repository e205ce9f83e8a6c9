"""The way of every packet: which interfaces, addresses and marks it has, hop by hop."""
