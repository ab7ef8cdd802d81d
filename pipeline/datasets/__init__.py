"""Datasets: their annotation files to segments. One file per dataset."""
