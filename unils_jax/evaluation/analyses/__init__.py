"""Analyses of the paper beyond its tables: what audio explains, and what people prefer."""
