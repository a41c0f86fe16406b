"""Networks: frozen descriptions with initialisation, packing and invariants, and no numerics of their own."""
