"""Models that the decoder does not compute, by way of transformers: slower, and as exact.

transformers is an optional dependency: only this package imports it, and this package is imported
only when such a model is opened.
"""
