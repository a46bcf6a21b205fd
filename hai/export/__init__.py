"""A trained model for other programs: a folder that loads anywhere, an ONNX graph, a page on the Hugging Face Hub."""

from hai.export.run import run_export

__all__ = ["run_export"]
