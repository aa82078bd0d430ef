"""Each file compares us with a peer in one run, and prints the load average beside its figures."""
