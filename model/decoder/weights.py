"""The named tensors of a checkpoint, handed out once each, with the shape that is expected."""

from collections.abc import Iterable

import torch
from torch import Tensor

from model.protocol.errors import ModelLoadError

# Angles grow with the position, so their frequencies stay exact whatever the model's dtype.
_EXACT = {"rope.factors": torch.float32}


class Weights:
    """A model takes what it needs by name; what is missing, misshapen or left over is an error.

    `storage` says how model/decoder/linear.py is to keep the matrices.
    """

    def __init__(
        self,
        tensors: Iterable[tuple[str, Tensor]],
        dtype: torch.dtype,
        device: torch.device,
        storage: str = "dense",
    ) -> None:
        # Converted one at a time, so that a second whole copy never exists.
        self._tensors = {
            name: tensor.to(device, _EXACT.get(name, dtype)).contiguous()
            for name, tensor in tensors
        }
        self.device = device
        self.storage = storage

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of that name. Raises ModelLoadError if it is missing or of another shape."""
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise ModelLoadError(f"the model file lacks the weight '{name}'")
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"the weight '{name}' has shape {tuple(tensor.shape)}, "
                f"but the model's config asks for {shape}"
            )
        return tensor

    def take_if_present(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """Like `take`, but None where the file has no such weight."""
        return self.take(name, shape) if name in self._tensors else None

    def expect_all_taken(self) -> None:
        """Raises ModelLoadError if the file holds weights that the model did not ask for."""
        if self._tensors:
            names = ", ".join(sorted(self._tensors)[:5])
            raise ModelLoadError(f"the model file holds weights its family does not use: {names}")
