"""The benchmark of every operation, beside its peers: `python -m dimba_kernels.bench --help`."""
