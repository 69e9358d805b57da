"""A .tflite file as a differentiable torch module.

`load_tflite` translates the operations of MediaPipe's face and person models, including four custom
ones, into a `torch.fx` graph. The result is generated Python without an interpreter, so it can be
compiled, moved, cast and differentiated like any other module.

Sources: the public .tflite schema (package `tflite`), and for the custom operations MediaPipe's
documented behaviour of `Landmarks2TransformMatrix`, `TransformTensorBilinear` and
`TransformLandmarks`, all version 2, and `Convolution2DTransposeBias`, version 1.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tflite
import torch
import torch.fx
import torch.nn.functional as F
from flatbuffers import flexbuffers
from torch import Tensor, nn

from core.base.errors import ReenactError

_OPERATORS = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
_DTYPES = {
    tflite.TensorType.FLOAT32: np.float32,
    tflite.TensorType.FLOAT16: np.float16,
    tflite.TensorType.INT32: np.int32,
}
_ACTIVATIONS: dict[int, Callable[..., Tensor]] = {
    tflite.ActivationFunctionType.RELU: F.relu,
    tflite.ActivationFunctionType.RELU6: F.relu6,
}
_NHWC_TO_NCHW_AXIS = {0: 0, 1: 2, 2: 3, 3: 1}


class UnsupportedModelError(ReenactError):
    """The file is not a .tflite model, or uses an operation that is not supported."""


def load_tflite(path: str | Path) -> torch.fx.GraphModule:
    """Translates a float .tflite file into a torch module.

    Args:
        path: the model file.

    Returns:
        A module that takes `[B, C, H, W]` of any batch, while the file's input is NHWC with a batch
        of one. It returns a dict from the file's output names to tensors in the file's axis order.
        Weights are float32 buffers without gradients; `.to()` moves and casts them.

    Raises:
        UnsupportedModelError: not a .tflite file, or an operation that is not supported.
        OSError: the file cannot be read.
    """
    data = Path(path).read_bytes()
    if data[4:8] != b"TFL3":
        raise UnsupportedModelError(f"{path} is not a .tflite model.")
    return _Translation(tflite.Model.GetRootAsModel(data, 0), str(path)).module()


class _Translation:
    """State of one translation: the graph so far, and the node of each tensor in the file."""

    def __init__(self, model: Any, path: str) -> None:
        self.path = path
        self.model = model
        self.file = model.Subgraphs(0)
        self.root = nn.Module()
        self.graph = torch.fx.Graph()
        self.nodes: dict[int, torch.fx.Node] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.constants: dict[int, np.ndarray] = {}
        for i in range(self.file.TensorsLength()):
            tensor = self.file.Tensors(i)
            shape = tuple(map(int, tensor.ShapeAsNumpy())) if tensor.ShapeLength() else ()
            self.shapes[i] = shape
            buffer = model.Buffers(tensor.Buffer())
            if buffer.DataLength():
                raw = buffer.DataAsNumpy().tobytes()
                self.constants[i] = np.frombuffer(raw, _DTYPES[tensor.Type()]).reshape(shape)

    def module(self) -> torch.fx.GraphModule:
        inputs = [int(i) for i in self.file.InputsAsNumpy()]
        if len(inputs) != 1:
            raise UnsupportedModelError(f"{self.path} has {len(inputs)} inputs instead of one.")
        self.nodes[inputs[0]] = self.graph.placeholder("image")
        for i in range(self.file.OperatorsLength()):
            self._operator(self.file.Operators(i))
        outputs = {
            self.file.Tensors(int(i)).Name().decode(): self._in_file_order(int(i))
            for i in self.file.OutputsAsNumpy()
        }
        self.graph.output(outputs)
        self.graph.eliminate_dead_code()
        return torch.fx.GraphModule(self.root, self.graph)

    # -- helpers ---------------------------------------------------------------------------

    def _call(self, function: Callable[..., Any], *args: Any) -> torch.fx.Node:
        return self.graph.call_function(function, args)

    def _buffer(self, index: int, value: np.ndarray | None = None) -> torch.fx.Node:
        """Returns the node of a constant, which is registered once as a float32 buffer."""
        name = f"tensor_{index}"
        if not hasattr(self.root, name):
            array = self.constants[index] if value is None else value
            self.root.register_buffer(name, torch.from_numpy(np.array(array, np.float32)))
        return self.graph.get_attr(name)

    def _value(self, index: int) -> torch.fx.Node:
        return self.nodes[index] if index in self.nodes else self._buffer(index)

    def _in_file_order(self, index: int) -> torch.fx.Node:
        node = self.nodes[index]
        if len(self.shapes[index]) != 4:
            return node
        return self._call(torch.permute, node, (0, 2, 3, 1))

    def _activate(self, node: torch.fx.Node, activation: int) -> torch.fx.Node:
        if activation == tflite.ActivationFunctionType.NONE:
            return node
        if activation not in _ACTIVATIONS:
            raise UnsupportedModelError(f"{self.path}: fused activation {activation}.")
        return self._call(_ACTIVATIONS[activation], node)

    def _same_padding(
        self, index: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: int = 1
    ) -> tuple[int, int, int, int]:
        """Returns TensorFlow's SAME padding as (left, right, top, bottom), an odd pixel last."""
        pads = []
        for size, k, s in (
            (self.shapes[index][2], kernel[1], stride[1]),
            (self.shapes[index][1], kernel[0], stride[0]),
        ):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * dilation + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        return tuple(pads)  # type: ignore[return-value]

    # -- operations ------------------------------------------------------------------------

    def _operator(self, op: Any) -> None:
        code = self.model.OperatorCodes(op.OpcodeIndex())
        name = _OPERATORS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        if name == "CUSTOM":
            name = code.CustomCode().decode()
            if code.Version() != (1 if name == "Convolution2DTransposeBias" else 2):
                raise UnsupportedModelError(f"{self.path}: {name} version {code.Version()}.")
        inputs = [int(i) for i in op.InputsAsNumpy()]
        output = int(op.OutputsAsNumpy()[0])
        translate = getattr(self, f"_op_{name.lower()}", None)
        if translate is None:
            raise UnsupportedModelError(f"{self.path}: operation {name} is not supported.")
        node = translate(op, inputs, output)
        if node is not None:
            self.nodes[output] = node

    @staticmethod
    def _options(op: Any, kind: type) -> Any:
        options = kind()
        table = op.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options

    def _op_dequantize(self, op: Any, inputs: list[int], output: int) -> None:
        self.constants[output] = self.constants[inputs[0]].astype(np.float32)

    def _convolution(
        self, options: Any, inputs: list[int], weight: np.ndarray, groups: int, padding: int
    ) -> torch.fx.Node:
        stride = (options.StrideH(), options.StrideW())
        kernel = (weight.shape[2], weight.shape[3])
        if (options.DilationHFactor(), options.DilationWFactor()) != (1, 1):
            raise UnsupportedModelError(f"{self.path}: dilated convolution.")
        source = self.nodes[inputs[0]]
        pad: tuple[int, int] = (0, 0)
        if padding == tflite.Padding.SAME:
            left, right, top, bottom = self._same_padding(inputs[0], kernel, stride)
            if left == right and top == bottom:
                pad = (top, left)
            else:
                source = self._call(F.pad, source, (left, right, top, bottom))
        node = self._call(
            F.conv2d,
            source,
            self._buffer(inputs[1], weight),
            self._buffer(inputs[2]),
            stride,
            pad,
            1,
            groups,
        )
        return self._activate(node, options.FusedActivationFunction())

    def _op_conv_2d(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        options = self._options(op, tflite.Conv2DOptions)
        weight = self.constants[inputs[1]].transpose(0, 3, 1, 2)  # OHWI -> OIHW
        return self._convolution(options, inputs, weight, 1, options.Padding())

    def _op_depthwise_conv_2d(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        options = self._options(op, tflite.DepthwiseConv2DOptions)
        if options.DepthMultiplier() != 1:
            raise UnsupportedModelError(f"{self.path}: depthwise convolution with a multiplier.")
        weight = self.constants[inputs[1]].transpose(3, 0, 1, 2)  # 1HWC -> C1HW
        return self._convolution(options, inputs, weight, weight.shape[0], options.Padding())

    def _op_prelu(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        slope = self.constants[inputs[1]]
        if slope.size != self.shapes[inputs[0]][3]:
            raise UnsupportedModelError(f"{self.path}: PReLU slopes that are not one per channel.")
        return self._call(F.prelu, self.nodes[inputs[0]], self._buffer(inputs[1], slope.ravel()))

    def _op_max_pool_2d(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        options = self._options(op, tflite.Pool2DOptions)
        kernel = (options.FilterHeight(), options.FilterWidth())
        stride = (options.StrideH(), options.StrideW())
        source = self.nodes[inputs[0]]
        if options.Padding() == tflite.Padding.SAME:
            pads = self._same_padding(inputs[0], kernel, stride)
            if any(pads):
                source = self._call(F.pad, source, pads, "constant", -math.inf)
        node = self._call(F.max_pool2d, source, kernel, stride)
        return self._activate(node, options.FusedActivationFunction())

    def _op_average_pool_2d(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        options = self._options(op, tflite.Pool2DOptions)
        kernel = (options.FilterHeight(), options.FilterWidth())
        if kernel != self.shapes[inputs[0]][1:3] or options.Padding() != tflite.Padding.VALID:
            raise UnsupportedModelError(
                f"{self.path}: average pooling that is not of the whole map."
            )
        node = self._call(F.adaptive_avg_pool2d, self.nodes[inputs[0]], 1)
        return self._activate(node, options.FusedActivationFunction())

    def _op_resize_bilinear(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        options = self._options(op, tflite.ResizeBilinearOptions)
        if options.AlignCorners() or not options.HalfPixelCenters():
            raise UnsupportedModelError(f"{self.path}: resizing that is not between half pixels.")
        size = self.shapes[output][1:3]
        return self._call(F.interpolate, self.nodes[inputs[0]], size, None, "bilinear", False)

    def _op_pad(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        pads = self.constants[inputs[1]]
        if pads[0].any():
            raise UnsupportedModelError(f"{self.path}: padding of the batch axis.")
        order = [int(v) for axis in (2, 1, 3) for v in pads[axis]]  # F.pad: W, H, C of NCHW
        return self._call(F.pad, self.nodes[inputs[0]], order)

    def _arithmetic(
        self, function: Callable[..., Tensor], options: Any, inputs: list[int]
    ) -> torch.fx.Node:
        node = self._call(function, self._value(inputs[0]), self._value(inputs[1]))
        return self._activate(node, options.FusedActivationFunction())

    def _op_add(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        return self._arithmetic(torch.add, self._options(op, tflite.AddOptions), inputs)

    def _op_mul(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        return self._arithmetic(torch.mul, self._options(op, tflite.MulOptions), inputs)

    def _op_relu(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        return self._call(F.relu, self.nodes[inputs[0]])

    def _op_hard_swish(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        return self._call(F.hardswish, self.nodes[inputs[0]])

    def _op_logistic(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        return self._call(torch.sigmoid, self.nodes[inputs[0]])

    def _op_reshape(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        node = self._call(
            torch.reshape, self._in_file_order(inputs[0]), (-1, *self.shapes[output][1:])
        )
        if len(self.shapes[output]) == 4:
            node = self._call(torch.permute, node, (0, 3, 1, 2))
        return node

    def _op_concatenation(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        axis = self._options(op, tflite.ConcatenationOptions).Axis()
        if len(self.shapes[output]) == 4:
            axis = _NHWC_TO_NCHW_AXIS[axis % 4]
        return self._call(torch.cat, [self.nodes[i] for i in inputs], axis)

    def _op_strided_slice(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        if self.shapes[inputs[0]] != self.shapes[output]:
            raise UnsupportedModelError(f"{self.path}: a slice that is not the identity.")
        return self.nodes[inputs[0]]

    def _custom_options(self, op: Any) -> dict[str, Any]:
        return flexbuffers.Loads(bytes(op.CustomOptionsAsNumpy()))

    def _op_convolution2dtransposebias(
        self, op: Any, inputs: list[int], output: int
    ) -> torch.fx.Node:
        # Options: padding, stride along x and y, as three 32-bit integers.
        _, *stride = np.frombuffer(bytes(op.CustomOptionsAsNumpy()), "<i4").tolist()
        weight = self.constants[inputs[1]].transpose(3, 0, 1, 2)  # OHWI -> IOHW
        if [*weight.shape[:1:-1]] != stride:
            raise UnsupportedModelError(f"{self.path}: transposed convolution with overlap.")
        return self._call(
            F.conv_transpose2d,
            self.nodes[inputs[0]],
            self._buffer(inputs[1], weight),
            self._buffer(inputs[2]),
            (stride[1], stride[0]),
        )

    def _op_landmarks2transformmatrix(
        self, op: Any, inputs: list[int], output: int
    ) -> torch.fx.Node:
        o = self._custom_options(op)
        return self._call(
            landmarks_to_matrix,
            self.nodes[inputs[0]],
            [int(i) for i in o["subset_idxs"]],
            int(o["left_rotation_idx"]),
            int(o["right_rotation_idx"]),
            float(o["target_rotation_radians"]),
            float(o["scale_x"]),
            float(o["scale_y"]),
            int(o["output_width"]),
            int(o["output_height"]),
        )

    def _op_transformtensorbilinear(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        o = self._custom_options(op)
        return self._call(
            sample_patch,
            self.nodes[inputs[0]],
            self.nodes[inputs[1]],
            int(o["output_height"]),
            int(o["output_width"]),
        )

    def _op_transformlandmarks(self, op: Any, inputs: list[int], output: int) -> torch.fx.Node:
        return self._call(transform_landmarks, self.nodes[inputs[0]], self.nodes[inputs[1]])


# -- MediaPipe's custom operations -------------------------------------------------------------


def landmarks_to_matrix(
    landmarks: Tensor,
    subset: list[int],
    left: int,
    right: int,
    target_rotation: float,
    scale_x: float,
    scale_y: float,
    width: int,
    height: int,
) -> Tensor:
    """Returns the affine map from a patch to the rotated bounding box of some landmarks.

    Args:
        landmarks: `[B, N, 3]` in pixels of the feature map.
        subset: indices of the landmarks whose box is used.
        left: index of the landmark where the line that defines the rotation starts.
        right: index of the landmark where it ends.
        target_rotation: angle of left -> right in the patch, radians.
        scale_x: enlargement of the box along that direction.
        scale_y: enlargement across it.
        width: of the patch, in pixels.
        height: of the patch, in pixels.

    Returns:
        `[B, 4, 4]`, patch pixel -> feature-map pixel; z is unchanged.
    """
    direction = landmarks[:, right, :2] - landmarks[:, left, :2]
    angle = target_rotation - torch.atan2(direction[:, 1], direction[:, 0])
    c, s = torch.cos(angle), torch.sin(angle)
    x, y = landmarks[:, subset, 0], landmarks[:, subset, 1]
    along = c[:, None] * x - s[:, None] * y
    across = s[:, None] * x + c[:, None] * y
    left_edge, right_edge = along.amin(1), along.amax(1)
    top_edge, bottom_edge = across.amin(1), across.amax(1)
    mid_along, mid_across = (left_edge + right_edge) / 2, (top_edge + bottom_edge) / 2
    centre_x, centre_y = c * mid_along + s * mid_across, -s * mid_along + c * mid_across
    sx = scale_x * (right_edge - left_edge) / width
    sy = scale_y * (bottom_edge - top_edge) / height
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    # Shift to the centre * rotate back * scale * shift the patch's middle to the origin.
    rows = [
        c * sx,
        s * sy,
        zero,
        centre_x - c * sx * width / 2 - s * sy * height / 2,
        -s * sx,
        c * sy,
        zero,
        centre_y + s * sx * width / 2 - c * sy * height / 2,
        zero,
        zero,
        one,
        zero,
        zero,
        zero,
        zero,
        one,
    ]
    return torch.stack(rows, 1).reshape(-1, 4, 4)


def sample_patch(features: Tensor, matrix: Tensor, height: int, width: int) -> Tensor:
    """Samples a bilinear patch of a feature map; positions outside of the map give 0.

    Args:
        features: `[B, C, H, W]`.
        matrix: `[B, 4, 4]`, patch pixel -> feature-map pixel, edges at whole numbers.
        height: of the patch.
        width: of the patch.

    Returns:
        `[B, C, height, width]`.
    """
    map_height, map_width = features.shape[2:]
    # Half precision is too coarse for sampling positions.
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    m = matrix.to(dtype)
    v = torch.arange(height, device=m.device, dtype=dtype)[None, :, None] + 0.5
    u = torch.arange(width, device=m.device, dtype=dtype)[None, None, :] + 0.5
    m = m[:, :, :, None, None]
    x = m[:, 0, 0] * u + m[:, 0, 1] * v + m[:, 0, 3] - 0.5
    y = m[:, 1, 0] * u + m[:, 1, 1] * v + m[:, 1, 3] - 0.5
    inside = (x >= 0) & (x <= map_width - 1) & (y >= 0) & (y <= map_height - 1)
    grid = torch.stack([x * (2 / (map_width - 1)) - 1, y * (2 / (map_height - 1)) - 1], -1)
    patch = F.grid_sample(features.to(dtype), grid, "bilinear", "zeros", align_corners=True)
    return (patch * inside[:, None]).to(features.dtype)


def transform_landmarks(landmarks: Tensor, matrix: Tensor) -> Tensor:
    """Applies the xy part of `[B, 4, 4]` to landmarks `[B, N, 2 or 3]`; z is copied."""
    xy = landmarks[..., :2] @ matrix[:, :2, :2].transpose(1, 2) + matrix[:, None, :2, 3]
    return torch.cat([xy, landmarks[..., 2:]], -1)
