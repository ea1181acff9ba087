"""Images to the size that a net takes: float [n, c, h, w] in and out, bilinear, pixel centres at halves.

Both formats have this very operator (Resize with `half_pixel`, RESIZE_BILINEAR with half pixel centres). It does not
average: shrink by more than two in one step and thin lines may fall between the samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn import functional

Boxes = npt.NDArray[np.floating]


class Resize(nn.Module):
    """[n, c, h, w] → [n, c, height, width]; proportions are not kept."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = height, width

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) == self.size:
            return x
        return functional.interpolate(x, self.size, mode="bilinear", align_corners=False)


class Letterbox(nn.Module):
    """[n, c, h, w] → [n, c, height, width]: as large as fits with its proportions kept, in the middle, and `fill` (in
    the units of x) around it."""

    def __init__(self, height: int, width: int, *, fill: float = 0.0) -> None:
        super().__init__()
        self.size = height, width
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        (height, width), (top, left) = self.place(x.shape[2], x.shape[3])
        if (height, width) != (x.shape[2], x.shape[3]):
            x = functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)
        bottom, right = self.size[0] - height - top, self.size[1] - width - left
        if not (top or left or bottom or right):
            return x
        return functional.pad(x, (left, right, top, bottom), value=self.fill)

    def place(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) and (top, left) of an image of this size on the canvas, in pixels."""
        scale = min(self.size[0] / height, self.size[1] / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        return inner, ((self.size[0] - inner[0]) // 2, (self.size[1] - inner[1]) // 2)

    def onto(self, boxes: Boxes, height: int, width: int) -> Boxes:
        """Corners x0, y0, x1, y1 [..., 4] as shares of the image, as shares of the canvas: what a net is trained on."""
        factor, offset = self._map(height, width)
        return boxes * factor + offset

    def back(self, boxes: Boxes, height: int, width: int) -> Boxes:
        """Corners as shares of the canvas, which a package answers, as shares of the image."""
        factor, offset = self._map(height, width)
        return (boxes - offset) / factor

    def _map(self, height: int, width: int) -> tuple[Boxes, Boxes]:
        (inner_h, inner_w), (top, left) = self.place(height, width)
        h, w = self.size
        return np.array([inner_w / w, inner_h / h] * 2), np.array([left / w, top / h] * 2)
