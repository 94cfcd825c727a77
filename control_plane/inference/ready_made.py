"""Any other registered type: the tensors that its graph takes and gives, by name, with no meaning added."""

from collections.abc import Mapping

from control_plane.inference.plans import (
    Interpretation,
    Plan,
    TensorNames,
    contiguous,
    non_finite_warnings,
    unused_options,
)
from control_plane.inference.requests import AnyPredictRequest
from control_plane.inference.shapes import tensor_inputs
from control_plane.inference.tensors import Array
from control_plane.models.card import ModelCard


class ReadyMadeModel:
    """One version of a ready-made model."""

    def __init__(self, card: ModelCard) -> None:
        self._names = TensorNames.of(card)
        self._inputs = card.inputs
        self._outputs = tuple(tensor.triton_name for tensor in card.outputs)

    def plan(self, request: AnyPredictRequest, *, max_rows: int) -> Plan:
        """See `Kind.plan`."""
        arrays = tensor_inputs(request.data, inputs=self._inputs, max_rows=max_rows)
        return Plan(
            inputs={self._names.inputs[name]: array for name, array in arrays.items()},
            outputs=self._outputs,
            rows=len(next(iter(arrays.values()))),
            lane=tuple(array.shape[1:] for array in arrays.values()),
            warnings=unused_options(request, ("return_attention", "weights", "action_selection", "seed")),
        )

    def interpret(
        self,
        request: AnyPredictRequest,
        plan: Plan,  # noqa: ARG002  the tensors say all
        outputs: Mapping[str, Array],
    ) -> Interpretation:
        """See `Kind.interpret`; no option of the request bears on it."""
        del request
        predictions = {name: contiguous(outputs[triton]) for name, triton in self._names.outputs.items()}
        return Interpretation(predictions=predictions, warnings=non_finite_warnings(predictions))
