"""Host trainers in their plain form; importing this registers each with and without AnchorOPT."""

import anchoropt_plugin  # noqa: F401  (first: it makes `import dassl` work)

from . import atprompt, cocoop, coop, dept, maple, zsclip

__all__ = ["atprompt", "cocoop", "coop", "dept", "maple", "zsclip"]
