"""The TVM backend: our IR to Relax, scheduled, built into an artifact.

Modules here that need tvm import it as `from archc.backends.tvm.load import tvm`: without torch, and with threads that
behave on a shared machine.
"""
