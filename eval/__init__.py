"""Evaluation: compare arms on held-out cases, tune, train, and measure speed. Start with `from eval import compare`.

The public names are listed in `__init__.pyi`, and each is loaded on first use: importing the package costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
