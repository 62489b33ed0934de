"""The batch engine: rows of tensors in, tokens out."""
