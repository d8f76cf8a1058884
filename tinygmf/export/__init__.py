"""Exports of the network: an ONNX file, a C program, WebAssembly."""
