"""torchvision, also where its compiled part cannot load.

The registry's torchvision is built for CUDA.  Beside a CPU-only torch its library does not load, and
`import torchvision` then fails at two operators that are not declared.  Declared without a body they
let the import pass: transforms, models and data sets work, and the operators themselves
(non-maximum suppression) raise their own clear error.
"""

import sys
from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """The package; to be called before anything else imports it (timm and torchmetrics do)."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.selfdistill_operators = library  # its declarations live as long as it does
    return torchvision
