"""The network on its way out: as an ONNX file, as one C program, as WebAssembly."""
