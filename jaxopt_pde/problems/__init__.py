"""Test functions with their domains, minimisers and, where known, their exact relaxed loss."""

__all__: list[str] = []
