"""The toolkit behind the workflow: every rule is one `python -m toolkit <noun> <verb>` that also works by hand."""

from toolkit import torchvision_cpu

torchvision_cpu.install()
