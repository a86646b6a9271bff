"""Recipes: YAML + overrides -> strict, immutable models."""
