"""The toolkit behind the workflow: every rule is one `python -m toolkit <noun> <verb>` that also works by
hand."""

import logging

from toolkit import torchvision_cpu

torchvision_cpu.install()
# PEFT imports bitsandbytes, which on some CPUs regrets a kernel that nothing here would use
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
