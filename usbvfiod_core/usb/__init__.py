"""The vocabulary of USB: speeds, requests, descriptors, transfers, and the `Device` contract."""
