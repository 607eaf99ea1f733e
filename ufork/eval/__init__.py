"""Evaluation of trained models: a protocol for benchmarks, the evaluator that runs them, and its record."""
