"""One writer for each artefact format; each takes an `ExportableModel` and a path."""
