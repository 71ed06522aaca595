"""What several commands share: the libraries, the exact result, timing, networks, reports."""
