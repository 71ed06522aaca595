"""The passes over the data: sums, the shift they are taken about, and where platforms differ."""
