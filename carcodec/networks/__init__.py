"""The papers' networks in PyTorch, one file a paper."""
