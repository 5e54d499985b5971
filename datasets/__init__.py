"""Data sets; importing this registers them with Dassl's registry, or the runtime's."""

import anchoropt_plugin  # noqa: F401  (makes `import dassl` work)

from . import embedded_sets, image_folder, public_sets

__all__ = ["embedded_sets", "image_folder", "public_sets"]
