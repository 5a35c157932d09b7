"""Numbers only: exact products, step layers, chains of them, the step-model interface, the model file."""
