"""The bytes of an inference request are those of the protobuf message."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2

from control_plane.triton.client import infer_message

DTYPES = st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_])
DATATYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "uint8": "UINT8", "bool": "BOOL"}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        DTYPES.flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(max_dims=3, max_side=9))),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.text(max_size=4), max_size=3),
    st.booleans(),
)
def test_infer_message_is_what_protobuf_writes(
    inputs: dict[str, Any], outputs: list[str], turned: bool
) -> None:
    if turned:
        inputs = {name: array.T for name, array in inputs.items()}
    message = service_pb2.ModelInferRequest.FromString(infer_message("model", inputs, tuple(outputs)))
    assert message == service_pb2.ModelInferRequest(
        model_name="model",
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(
                name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape
            )
            for name, array in inputs.items()
        ],
        outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=[array.tobytes() for array in inputs.values()],
    )


def test_infer_message_of_a_large_tensor_keeps_its_length() -> None:
    array = np.zeros((64, 50, 60), dtype=np.float32)
    message = service_pb2.ModelInferRequest.FromString(infer_message("m", {"x": array}, ("y",)))
    assert len(message.raw_input_contents[0]) == array.nbytes
