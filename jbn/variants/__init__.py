"""Norms other than the plain one, each a `jbn.Norm` with the call of `jbn.batch_norm`."""
