"""The engine of a training project; its public names are those of `__init__.pyi`.

They are imported when they are first used, so that `import anneal` loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
