"""Readers of document formats: bytes in, what a person sees out, within limits of size and depth.

Nothing here touches the network, the disk or the models of enrichment. The readers import nothing else of the
product: they run in a child process of their own (`operators.formats.process`) that must start fast and stay small.
"""
