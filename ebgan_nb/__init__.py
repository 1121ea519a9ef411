__version__ = "0.0.1"

import warnings
# fastai says this when it is imported, and no user of this package can do anything about it
warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated')
