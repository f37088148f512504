"""Answers of a trained model to TextVQA and MMBench, their scores, and the comparison of experiments. Scoring
imports no torch."""
