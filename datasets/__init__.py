"""Data sets; importing this package registers them in ``DATASET_REGISTRY``."""

import anchoropt_plugin  # noqa: F401  (makes `import dassl` work)

from . import embedded_sets, image_folder, public_sets

__all__ = ["embedded_sets", "image_folder", "public_sets"]
