"""ONNX files whose output is known: they give back the pictures that they are shown."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def pooling_network(
    path: Path, side: int, block: int, batch: int | str = "B", channels: int = 3
) -> Path:
    """Means of a picture's blocks, as one vector of channels, rows and columns."""
    pooled = (side // block) ** 2 * channels
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, channels, side, side])
    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, pooled])
    nodes = [
        helper.make_node(
            "AveragePool", ["input"], ["p"], kernel_shape=[block] * 2, strides=[block] * 2
        ),
        helper.make_node("Flatten", ["p"], ["output"]),
    ]
    return _write(path, nodes, entry, result, [])


def coefficient_network(path: Path, slope: float = 1.0) -> Path:
    """257 numbers for a face of 224 px: the mean of its red, of its green and of its blue, times
    their place and a slope."""
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", 3, 224, 224])
    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", 257])
    matrix = np.zeros((3, 257), np.float32)
    matrix[np.arange(257) % 3, np.arange(257)] = slope * np.arange(257)
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["output"]),
    ]
    return _write(path, nodes, entry, result, [onnx.numpy_helper.from_array(matrix, "m")])


def _write(path: Path, nodes: list, entry: object, result: object, weights: list) -> Path:
    graph = helper.make_graph(nodes, "known", [entry], [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
