"""The DP-SGD loop, and what is kept of it on disk."""
