"""Whether the inputs of devices and fleets are still those that a model was made for."""
