"""The decisions of Algorithm 1, made fast."""

ENGINE = 1
"""The number of this engine. Raise it by one with every change after which decisions may differ by more than rounding.

A run's folder notes it: whoever goes on with another engine is told so.
"""
