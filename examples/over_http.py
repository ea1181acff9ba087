"""A model asked over the Open Inference Protocol v2, by a client that knows nothing of Edgewright.

edgewright agent run --home HOME --listen 127.0.0.1:8500
pip install 'tritonclient[http]'
python examples/over_http.py 127.0.0.1:8500 digits
"""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main(address: str, name: str) -> None:
    client = triton.InferenceServerClient(address)
    told = client.get_model_metadata(name)
    tensors = []
    for given in told["inputs"]:
        shape = [1, *given["shape"][1:]]  # -1 in front: a batch of any size
        tensor = triton.InferInput(given["name"], shape, given["datatype"])
        tensor.set_data_from_numpy(np.zeros(shape, triton.triton_to_np_dtype(given["datatype"])))
        tensors.append(tensor)
    found = client.infer(name, tensors)
    print(f"{name} {found.get_response()['model_version']}")
    for output in found.get_response()["outputs"]:
        print(f"  {output['name']}: {np.round(found.as_numpy(output['name']), 3).tolist()}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InferenceServerException as error:  # it says what was expected, what came and what there is
        sys.exit(str(error))
