"""Finished runs against each other: figures, their uncertainty, costs, curves, and a report."""
