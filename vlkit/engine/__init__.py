"""Rows of tensors in, tokens out: many rows at a time, by continuous batching."""
