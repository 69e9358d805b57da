"""Measuring a shot, and its report."""
