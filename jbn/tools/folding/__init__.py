"""What `jbn.tools.fold` is made of: the arithmetic on kernels, the search for pairs, two frameworks."""
