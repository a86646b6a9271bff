"""Preflight: what would end a run after hours, found in a minute on the machines that it will run on."""
