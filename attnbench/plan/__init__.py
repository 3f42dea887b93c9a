"""YAML → suite → cells, settings and time budget: what a run is to do. Imports no torch by itself."""
