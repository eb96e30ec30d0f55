"""The torch backend: graphs as `nn.Module`, and as Python source, ONNX or `.pt2` files."""
