"""Makes a model for each of four runtimes, or runs such models and prints what they say.

    python3 runtimes.py make DIRECTORY
    python3 runtimes.py run NET.onnx TENSORS.safetensors WEIGHTS.gguf NET.tflite
"""

import hashlib
import json
import sys

import numpy

SIZE = 700
NAMES = ["net.onnx", "tensors.safetensors", "weights.gguf", "net.tflite"]


def weights(seed):
    return numpy.random.default_rng(seed).standard_normal((SIZE, SIZE)).astype(numpy.float32)


def field(number, value):
    """A field of a protobuf message."""
    def varint(value):
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx(path):
    """y = x × w, as ModelProto."""
    def tensor(name, *dims):
        shape = b"".join(field(1, field(1, dim)) for dim in dims)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))
    node = field(1, "x") + field(1, "w") + field(2, "y") + field(4, "MatMul")
    matrix = field(1, SIZE) + field(1, SIZE) + field(2, 1) + field(8, "w") + field(9, weights(1).tobytes())
    graph = field(1, node) + field(2, "g") + field(5, matrix)
    graph += field(11, tensor("x", 1, SIZE)) + field(12, tensor("y", 1, SIZE))
    open(path, "wb").write(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))


def safetensors(path):
    from safetensors.numpy import save_file
    save_file({"a": weights(2), "b": weights(3)[:, :5].copy()}, path)


def gguf(path):
    from gguf import GGUFWriter
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("a", weights(4))
    writer.add_tensor("b", weights(5).astype(numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tflite(path):
    """A fully connected layer, by the schema that the runtime brings."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name, buffer, *shape):
        made = schema.TensorT()
        made.name, made.buffer, made.shape, made.type = name, buffer, list(shape), schema.TensorType.FLOAT32
        return made

    def buffer(array=None):
        made = schema.BufferT()
        made.data = None if array is None else numpy.frombuffer(array.tobytes(), numpy.uint8)
        return made

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, 2], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", 0, 1, SIZE), tensor("w", 1, SIZE, SIZE), tensor("bias", 2, SIZE), tensor("y", 0, 1, SIZE)]
    graph.inputs, graph.outputs, graph.operators = [0], [3], [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [buffer(), buffer(weights(6)), buffer(weights(7)[0])]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    open(path, "wb").write(builder.Output())


def run(net, tensors, weights_path, lite):
    x = weights(8)[:1]
    digest = lambda array: [list(array.shape), hashlib.sha256(numpy.ascontiguousarray(array).tobytes()).hexdigest()]
    said = {}

    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(net, options, providers=["CPUExecutionProvider"])
    said["onnx"] = digest(session.run(None, {"x": x})[0])

    from safetensors import safe_open
    with safe_open(tensors, framework="np") as file:
        said["safetensors"] = {key: digest(file.get_tensor(key)) for key in sorted(file.keys())}
        said["a slice"] = digest(file.get_slice("a")[3:9, 100:200])

    from gguf import GGUFReader
    said["gguf"] = {tensor.name: digest(tensor.data) for tensor in GGUFReader(weights_path).tensors}

    from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model_path=lite, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    said["tflite"] = digest(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    print(json.dumps(said))


if sys.argv[1] == "make":
    for make, name in zip([onnx, safetensors, gguf, tflite], NAMES):
        make(f"{sys.argv[2]}/{name}")
else:
    run(*sys.argv[2:])
