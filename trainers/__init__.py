"""Host trainers in their plain form; importing this package registers X and X_AnchorOPT of each."""

import anchoropt_plugin  # noqa: F401  (first: it makes `import dassl` work)

from . import atprompt, cocoop, coop, dept, maple, zsclip

__all__ = ["atprompt", "cocoop", "coop", "dept", "maple", "zsclip"]
