"""tinygrad's machinery: devices, compiled programs, and the inference engine."""
