"""The papers' networks in PyTorch, one file a paper, and what stands in for one."""
